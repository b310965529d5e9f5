"""Out of memory: passes get smaller, and what comes out is the same."""

import logging
from pathlib import Path

import pytest
import torch
from small_device import SmallDevice
from tiny_models import build_model
from workbench_helpers import Untouched, make_bench

from autolayer.core.arms import Arm
from autolayer.core.errors import TrainingError
from autolayer.training import out_of_memory
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench


def bench_of(folder: Path, monkeypatch: pytest.MonkeyPatch, tokens: int) -> Workbench:
    monkeypatch.setattr(out_of_memory, "TOKENS", tokens)
    monkeypatch.setattr(out_of_memory, "SMALL", 16)
    return make_bench(build_model("qwen3"), folder)


def test_passes_are_halved_until_they_fit_and_the_weights_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arm, steps, rewards = Arm(layers=(1,), learning_rate=1e-3, seed=0), 3, []
    expected_bench = bench_of(tmp_path / "expected", monkeypatch, tokens=32)
    expected = train_arm(expected_bench, arm, steps)
    bench = bench_of(tmp_path / "small", monkeypatch, tokens=128)
    device, before = SmallDevice(bench.model, most=30), Untouched(bench.model)
    with caplog.at_level(logging.WARNING):
        trained = train_arm(bench, arm, steps, on_step=rewards.append)
    before.check()
    assert max(device.tried) > 30 and bench.micro_batching.size.tokens == 32
    assert "CUDA out of memory: continuing with at most 64 tokens in a pass." in caplog.messages
    weights, wanted = bench.arm_weights(trained.arm), expected_bench.arm_weights(expected.arm)
    assert weights is not None and wanted is not None
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert len(rewards) == steps, "a step that was done twice is reported once"
    assert trained.cost.generated_tokens == expected.cost.generated_tokens
    assert bench.spent.generated_tokens > expected_bench.spent.generated_tokens, "what was lost was paid for"


def test_activations_are_recomputed_before_passes_get_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = bench_of(tmp_path, monkeypatch, tokens=64)
    device = SmallDevice(bench.model, most=1)
    keeps = bench.micro_batching._reduce

    def take_less(reason: str) -> None:
        keeps(reason)
        device.most = 64 if bench.micro_batching.size.checkpointing else 1

    monkeypatch.setattr(bench.micro_batching, "_reduce", take_less)
    with caplog.at_level(logging.WARNING):
        train_arm(bench, Arm(layers=(1,), learning_rate=1e-3, seed=0), 1)
    assert bench.micro_batching.size.checkpointing and bench.micro_batching.size.tokens == 64
    assert caplog.messages[-1].endswith("continuing with at most 64 tokens in a pass, activations checkpointed.")


def test_one_sequence_that_does_not_fit_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path, monkeypatch, tokens=64)
    SmallDevice(bench.model, most=1)
    before = Untouched(bench.model)
    with pytest.raises(TrainingError, match=r"one sequence of \d+ tokens .*CUDA out of memory\): give a smaller"):
        train_arm(bench, Arm(layers=(1,), learning_rate=1e-3, seed=0), 1)
    before.check()
