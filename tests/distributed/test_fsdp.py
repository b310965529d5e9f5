"""A model in shards over two processes (FSDP2, gloo on the CPU) against the same model in one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch
from launch_helpers import SHORT, close, launch, same_movement
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.loading import meta_model
from autolayer.models.memory_estimate import MicroBatchShape, training_bytes
from autolayer.pipeline.checks import check_options
from autolayer.pipeline.engine_choice import engine_name
from autolayer.pipeline.memory_fit import fit_memory
from autolayer.pipeline.setup import load
from autolayer.training import out_of_memory

PROGRAM = """
import json, torch
from autolayer.models.loading import load_model
from autolayer.models.layers import find_layers, pass_parameters
from autolayer.distributed.process_group import join_process_group
from autolayer.distributed.fsdp import number_of_rank_0, make_mesh, shard, unsharded

group, cpu = join_process_group(on_cpu=True), torch.device("cpu")
loaded = load_model("tiny", "cpu")
model, blocks, ids = loaded.model, find_layers(loaded.model), torch.arange(40).view(2, 20) % 30
before, state = model(ids).logits.detach(), {n: p.detach().clone() for n, p in model.named_parameters()}
shard(model, blocks, group, make_mesh(group, cpu), cpu)
block_bytes = lambda: sum(p.untyped_storage().nbytes() for b in blocks for q in b.parameters()
                          for p in [q.to_local() if hasattr(q, "to_local") else q])
found = {"bytes": block_bytes(), "whole": [], "agreed": number_of_rank_0(model, 7 + group.rank) == 7}
for block in blocks:  # how many are whole while one is at work
    block.self_attn.register_forward_hook(lambda *_: found["whole"].append(
        sum(not hasattr(next(b.parameters()), "to_local") for b in blocks)))
with torch.no_grad():
    found["same"] = torch.equal(model(ids).logits, before)
    stop = blocks[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    try:  # a pass may end half-way
        model(ids)
    except ZeroDivisionError:
        stop.remove()
    with unsharded(model, (3,)):
        parameters = dict(blocks[3].named_parameters())
        assert all(type(p) is torch.nn.Parameter for p in parameters.values())
        with unsharded(model, (3,)):
            parameters["mlp.up_proj.weight"].add_(0.1)
        found["moved"] = not torch.equal(model(ids).logits, before)
    found["back"] = torch.equal(model(ids).logits, before)
# Gradients through shards arrive at the parameters that passes compute with.
given, names = {}, [n for n, _ in model.named_parameters() if n.startswith("model.layers.2.")]
for parameter in [*(model.get_parameter(n) for n in names), *pass_parameters(model, (2,)).values()]:
    parameter.requires_grad_(True)
def take(parameter, name):
    given[name], parameter.grad = parameter.grad.clone(), None
for name, parameter in pass_parameters(model, (2,)).items():
    parameter.register_post_accumulate_grad_hook(lambda p, name=name: take(p, name))
model(ids).logits.square().mean().backward()
plain = load_model("tiny", "cpu").model
plain(ids).logits.square().mean().backward()
found["gradients"] = sorted(given) == sorted(names) and all(
    torch.equal(given[n], plain.get_parameter(n).grad) for n in names)
parts = {n: p for n, p in model.named_parameters() if hasattr(p, "to_local")}
found["kept"] = len(parts) == 88 and all(
    torch.equal(p.to_local(), state[n].chunk(2)[group.rank]) for n, p in parts.items())
if group.is_rank_0:
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_pass_holds_one_block_at_a_time_and_says_what_the_whole_model_says(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = launch(2, cwd=tmp_path, program="program.py")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found.pop("bytes") == sum(p.nbytes for b in meta_model("tiny").model.layers for p in b.parameters()) / 2
    assert found.pop("whole")[:8] == [1] * 8
    assert found == dict.fromkeys(("agreed", "same", "moved", "back", "gradients", "kept"), True)


@pytest.mark.slow
def test_processes_with_shards_pick_what_one_picks(tmp_path: Path) -> None:
    """Probes, a race, the final training and the evaluation, all from shards."""
    for count, extra in ((1, ()), (2, ("--shard",))):
        command = ("pick", *SHORT, "--budget", "4", "--beta", "0.02", *extra, "--out", f"run-{count}", "--json")
        done = launch(count, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"run-{count}" / "result.json").read_text()) for count in (1, 2))
    for values in (one, two):
        del values["cost_share_of_full_run"]  # the price of a generated token is measured
        for cost in values["cost"].values():
            del cost["seconds"], cost["layer_tokens"], cost["seconds_share"]
    assert any(row["measured"] is not None for row in one["ranking"]), "there was a race"
    close(two, one)
    same_movement(*(load_file(tmp_path / f"run-{count}" / "layer.safetensors") for count in (2, 1)))


@pytest.mark.slow
def test_training_from_shards_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Two layers with a KL reference, recomputed; stopped by a reward that fails in the middle, in one sentence."""
    (tmp_path / "reward.py").write_text(
        "import pathlib\n\ndef score(completions, **_):\n    calls = pathlib.Path('calls')\n"
        "    calls.write_text(calls.read_text() + '.' if calls.exists() else '.')\n"
        "    assert len(calls.read_text()) != 9, 'broken here'\n"
        "    return [float(len(set(text))) for text in completions]\n"
    )
    rows = "".join(json.dumps({"prompt": f"{a}+{b}="}) + "\n" for a in range(20) for b in range(20))
    (tmp_path / "sums.jsonl").write_text(rows)
    command = ("train", "--model", "tiny", "--data", "sums.jsonl", "--reward", "reward.py:score", "--layers", "2,5",
               "--learning-rate", "1e-3", "--beta", "0.02", "--activation-checkpointing",
               "--steps", "28", "--prompts-per-step", "4",
               "--group-size", "4", "--max-new-tokens", "4", "--num-eval", "20", "--device", "cpu")  # fmt: skip
    first = launch(2, *command, "--shard", "--out", "two", cwd=tmp_path)
    assert first.returncode != 0 and first.stderr.count("autolayer: error: ") == 1, first.stderr[-3000:]
    assert "broken here" in first.stderr
    for count, extra in ((2, ("--shard", "--out", "two")), (1, ("--out", "one"))):
        done = launch(count, *command, *extra, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    same_movement(*(load_file(tmp_path / out / "layer.safetensors") for out in ("two", "one")))


def test_what_shards_cannot_do_is_refused() -> None:
    for options, reason in (
        ({"rollouts": "vllm"}, "give the URL of a vLLM server"),
        ({"adapter": "lora"}, "--shard does not go with --adapter"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=reason):
            Config(model="tiny", shard=True, **cast(Any, options))
    config, shape = Config(model="tiny", shard=True, learning_rate=1e-3), meta_model("tiny")
    with pytest.raises(ConfigError, match="but there is only one process: start several with `torchrun"):
        load(config, ProcessGroup(), torch.device("cpu"))
    check_options(config, "pick", (2,), shape)
    with pytest.raises(ConfigError, match="training all layers at once"):
        check_options(config, "measure", (2,), shape)
    with pytest.raises(ConfigError, match="training all layers at once"):
        check_options(config.replace(layers="full"), "train", "full", shape)
    assert engine_name(config, "cuda") == "transformers", "vLLM would hold the whole model beside it"


def test_the_forecast_counts_shards_and_what_is_whole() -> None:
    model = meta_model("tiny")

    def weights(shards: int, layers: tuple[int, ...]) -> int:
        micro_batches = MicroBatchShape(width=64, tokens=64, activation_checkpointing=False, batch=1, shards=shards)
        return training_bytes(model, layers, micro_batches, num_trained=1)["weights"]

    block = sum(p.nbytes for p in model.model.layers[0].parameters())
    rest = weights(1, (2,)) - 8 * block
    assert weights(1, (2,)) == sum(p.nbytes for p in model.parameters())
    assert weights(4, (2,)) == rest + 2 * block + 3 * block
    assert weights(4, (2, 3)) == rest + 2 * block + 4 * block


def test_a_forecast_says_how_many_processes_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(
            Qwen3Config(num_hidden_layers=16, hidden_size=2048, intermediate_size=8192, vocab_size=1000)
        )
    weights = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr(out_of_memory, "TOKENS", 64)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=0.7 * weights))
    config = Config(model="tiny", shard=True, prompts_per_step=2, device="cpu")
    assert "or several with --shard" in fit_memory(config.replace(shard=False), model, (15,), 64).sentence
    memory = fit_memory(config, model, (15,), 64)
    assert memory.micro_batches.shards == 8 and "in each of 8 processes" in memory.sentence
