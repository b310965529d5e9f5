"""Activation checkpointing that stops at the lowest trained layer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, build_model
from workbench_helpers import Untouched, assert_equal, make_bench, sample_folds

from autolayer.core.arms import Arm
from autolayer.core.layer_set import Layers
from autolayer.models.layers import find_layers
from autolayer.probes.gradient import streamed_gradient
from autolayer.probes.shared_batch import make_fold
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

STEPS = 2


def bench_of(architecture: str, folder: Path, checkpointing: bool, beta: float = 0.0) -> Workbench:
    bench = make_bench(build_model(architecture), folder / str(checkpointing), beta=beta)
    bench.micro_batching.size = replace(bench.micro_batching.size, checkpointing=checkpointing)
    return bench


def counting(bench: Workbench) -> list[int]:
    """Counts how often each block's attention runs in passes with gradients, from now on."""
    ran = [0] * len(bench.layers)

    def hook(index: int) -> Any:
        def count(*_: Any) -> None:
            ran[index] += torch.is_grad_enabled()

        return count

    blocks: Any = find_layers(bench.model)
    for index, block in enumerate(blocks):
        block.self_attn.register_forward_pre_hook(hook(index))
    return ran


@pytest.mark.parametrize("layers", [(0,), (2,), (1, 3), "full"])
def test_only_the_layers_from_the_lowest_trained_one_up_are_run_again(layers: Layers, tmp_path: Path) -> None:
    bench = bench_of("qwen3", tmp_path, checkpointing=True)
    ran = counting(bench)
    before = Untouched(bench.model)
    train_arm(bench, Arm(layers=layers, learning_rate=1e-3, seed=0), STEPS)
    before.check()
    lowest = 0 if layers == "full" else min(layers)
    assert ran == [STEPS if index < lowest else 2 * STEPS for index in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "beta"), [("qwen3", 0.0), *((name, 0.1) for name in ARCHITECTURES)])
def test_what_is_trained_is_the_same_bit_for_bit(architecture: str, beta: float, tmp_path: Path) -> None:
    arm = Arm(layers=(1,), learning_rate=1e-3, seed=0)
    kept, again = (bench_of(architecture, tmp_path, checkpointing, beta) for checkpointing in (False, True))
    weights = [bench.arm_weights(train_arm(bench, arm, STEPS).arm) for bench in (kept, again)]
    assert weights[0] is not None and weights[1] is not None
    assert_equal(weights[0], weights[1])


def test_the_shared_gradient_is_the_same_and_keeps_less(tmp_path: Path) -> None:
    found, kept_bytes = [], []
    for checkpointing in (False, True):
        bench = bench_of("llama", tmp_path, checkpointing)
        fold = make_fold(bench, sample_folds(bench, num_folds=1)[0])
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found.append(streamed_gradient(bench, fold.batch, fold.advantages_B, (1, 2)))
        kept_bytes.append(saved)
    for layer, gradient in found[0].items():
        assert_equal(gradient, found[1][layer])
    assert kept_bytes[1] < 0.6 * kept_bytes[0], "layers 1 to 3 of 4 keep nothing but what enters them"
    assert any(bool(g.any()) for g in found[0][1].values())
