"""More, or less, than one layer: LoRA adapters, and sets of layers that race."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from tiny_models import build_model
from transformers import AutoModelForCausalLM
from workbench_helpers import differing, make_bench, weights_of

import autolayer
from autolayer.cli.main import main
from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.models import lora
from autolayer.models.layers import layer_parameters, linear_module_names
from autolayer.models.loading import load_model
from autolayer.models.train_only import train_only
from autolayer.pipeline.decide_again import decide_run_again
from autolayer.training.train_arm import train_arm

SHORT: dict[str, Any] = {"model": "tiny", "task": "math:arith", "steps": 40, "prompts_per_step": 8, "num_eval": 64,
                         "device": "cpu"}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_adapters_compute_nothing_at_first_and_are_all_that_is_trained() -> None:
    model = build_model("qwen2")
    before = model(input_ids=IDS).logits
    names = linear_module_names(model, (1, 3))
    assert len(names) == 14 and all(".layers.1." in name or ".layers.3." in name for name in names)
    lora.add_adapters(model, names, seed=0)
    assert torch.equal(model(input_ids=IDS).logits, before)
    for layers in ((1,), (1, 3)):
        trained = layer_parameters(model, layers)
        assert len(trained) == 14 * len(layers) and all("lora_" in name for name in trained)
    assert len(layer_parameters(model, "full")) == 28
    with train_only(model, 3, quiet=True) as trainable:
        assert trainable.trainable == sum(p.numel() for p in layer_parameters(model, (3,)).values())


def test_adapters_are_those_of_the_seed_and_leave_the_callers_randomness_alone() -> None:
    state = torch.get_rng_state()
    models = [build_model("qwen3") for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        lora.add_adapters(model, linear_module_names(model, (0,)), seed)
    assert torch.equal(torch.get_rng_state(), state)
    same, other = (differing(weights_of(models[0]), weights_of(model)) for model in models[1:])
    assert not same and all("lora_A" in name for name in other) and len(other) == 7


def test_the_rate_factor_makes_a_first_step_as_large_as_a_whole_layers() -> None:
    model = build_model("qwen3", hidden=64)
    lora.add_adapters(model, linear_module_names(model, range(4)), seed=0)
    rate = 1e-3
    squares, count = 0.0, 0
    for name, first in model.named_parameters():
        if "lora_A" in name:
            second = model.get_parameter(name.replace("lora_A", "lora_B"))
            sign = torch.randn(second.shape, generator=torch.Generator().manual_seed(count)).sign()
            step = lora.ALPHA / lora.RANK * (rate * lora.learning_rate_factor(model) * sign) @ first
            squares, count = squares + float(step.square().sum()), count + step.numel()
    assert (squares / count) ** 0.5 == pytest.approx(rate, rel=0.15)


def test_a_trained_adapter_loads_with_peft_and_merges(tmp_path: Path) -> None:
    model = build_model("qwen3")
    model.save_pretrained(tmp_path / "base")
    bench = make_bench(model, tmp_path / "run")
    bench.adapt((1, 2), seed=0)
    arm = train_arm(bench, Arm(layers=(2,), learning_rate=0.05, seed=0), 2).arm
    tensors = bench.arm_weights(arm)
    assert tensors is not None and len(tensors) == 14
    lora.save_adapter(tmp_path / "adapter", tensors, str(tmp_path / "base"), {"base": "test"})
    with bench.weights(arm.layers, tensors), torch.no_grad():
        wanted = model(input_ids=IDS).logits
    with torch.no_grad():
        start = model(input_ids=IDS).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        loaded: Any = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
        assert all(".layers.2." in name for name in loaded.peft_config["default"].target_modules)
        torch.testing.assert_close(loaded(input_ids=IDS).logits, wanted, rtol=0, atol=1e-6)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
    assert float((wanted - start).abs().max()) > 1e-3


def test_adapters_resume_bit_for_bit_with_a_reference(tmp_path: Path) -> None:
    arm = Arm(layers=(1,), learning_rate=0.02, seed=3)
    ends = []
    for name, stops in (("whole", (3,)), ("cut", (1, 3))):
        bench = make_bench(build_model("qwen3"), tmp_path / name, beta=0.05)
        bench.adapt((1, 2), seed=0)
        reached = arm
        for stop in stops:
            reached = train_arm(bench, reached, stop).arm
        ends.append(bench.arm_weights(reached))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "--top-k 0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(model="tiny", **options)
    with pytest.raises(ConfigError, match="lora"):
        Config(model="tiny", **cast(Any, {"adapter": "dora"}))


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("train", {"top_k": 2, "layers": "1"}, "--top-k belongs to `pick`"),
        ("measure", {"adapter": "lora"}, "--adapter belongs to `pick`"),
        ("pick", {"top_k": 3, "layers": "0,1"}, "more than the 2 candidate layers"),
    ],
)
def test_verbs_refuse_what_they_would_ignore(verb: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    run: Any = {"train": autolayer.train_layer, "measure": autolayer.measure, "pick": autolayer.pick}[verb]
    with pytest.raises(ConfigError, match=words):
        run(**SHORT, **options, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sets_race_and_the_winner_is_trained(tmp_path: Path) -> None:
    result = autolayer.pick(**SHORT, top_k=2, budget=2.0, out=str(tmp_path))
    assert result.sets is not None and 2 <= len(result.sets) <= 5
    assert all(len(row.layers) == 2 for row in result.sets)
    assert result.best_layers == result.trained_layers and len(result.best_layers or ()) == 2
    assert any(row.rungs for row in result.sets)
    assert {row.layer for row in result.ranking or ()} == set(range(8))
    assert all(row.measured is None for row in result.ranking or ())
    assert sum(row.probability_best or 0 for row in result.sets) == pytest.approx(1, abs=1e-6)
    patch = autolayer.load_patch(tmp_path / "layer.safetensors")
    assert patch.layers == tuple(result.best_layers or ())
    assert autolayer.pick(**SHORT, top_k=2, budget=2.0, out=str(tmp_path)) == result
    with pytest.raises(ConfigError, match=r"--top-k 1 cannot .*compared sets of 2 layers. Give 2, or start"):
        decide_run_again(tmp_path, top_k=1)


@pytest.mark.slow
def test_an_adapter_run_from_start_to_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    result = autolayer.pick(**SHORT, adapter="lora", layers="5-7", out=str(run))
    assert (run / "adapter" / "adapter_config.json").is_file() and not (run / "layer.safetensors").exists()
    assert result.gain is not None and any("rank 16" in note for note in result.notes)
    with pytest.raises(SystemExit) as left:
        main(["merge", str(run), "--out", str(tmp_path / "merged")])
    assert left.value.code == 0, capsys.readouterr().err
    merged, base = load_model(str(tmp_path / "merged")), load_model("tiny")
    changed = differing(weights_of(base.model), weights_of(merged.model))
    layer = (result.best_layers or (0,))[0]
    assert changed and all(f".layers.{layer}." in name for name in changed)


@pytest.mark.slow
def test_an_adapter_run_goes_on_after_the_search(tmp_path: Path) -> None:
    options = {**SHORT, "adapter": "lora", "layers": "6-7", "budget": 2.0}
    whole = autolayer.pick(**options, out=str(tmp_path / "whole"))
    stopped = autolayer.pick(**options, out=str(tmp_path / "cut"), until="search")
    assert any(row.rungs for row in stopped.ranking or ())
    resumed = autolayer.pick(**options, out=str(tmp_path / "cut"))
    assert (resumed.gain, resumed.best_layers, resumed.learning_rate) == (
        whole.gain, whole.best_layers, whole.learning_rate,
    )  # fmt: skip
