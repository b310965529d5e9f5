"""Reach and trusted gain against root finding, twin models and arithmetic."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tiny_models import build_model
from workbench_helpers import make_bench, make_context, plain_log_probs

from autolayer.probes import PROBES
from autolayer.probes.policy_distance import MAX_REACH, NUM_DISTANCE_STEPS, TARGET_DISTANCE, find_distance_steps
from autolayer.probes.trusted_gain import reach_scores


@pytest.mark.parametrize("deviation", [0.03, 5.0, 800.0])
@pytest.mark.parametrize("growth", [-0.3, 0.0, 0.5, 2.0])
def test_the_reach_is_the_root_of_the_distance(deviation: float, growth: float) -> None:
    def moved_at(step: float) -> float:
        nats = step * deviation
        return nats * (1 + nats**2) ** growth

    root = brentq(lambda step: moved_at(step) - TARGET_DISTANCE, 1e-6 / deviation, 1e4 / deviation)
    assert isinstance(root, float)
    found = find_distance_steps(lambda step: [moved_at(step)], TARGET_DISTANCE / deviation).step
    assert found == pytest.approx(root, rel=0.1)


@pytest.mark.parametrize(("moved", "expected"), [(0.0, MAX_REACH), (1e9, 1 / MAX_REACH), (math.nan, 1 / MAX_REACH)])
def test_a_policy_that_never_or_always_moves_too_far_gives_the_bound(moved: float, expected: float) -> None:
    steps: list[float] = []
    found = find_distance_steps(lambda step: steps.append(step) or [moved], 2.0)
    assert found.by_part == (found.step,) and found.step / 2.0 == pytest.approx(expected)
    assert len(steps) == NUM_DISTANCE_STEPS


@pytest.mark.parametrize("layer", [0, 2])
def test_at_the_reach_the_policy_is_that_far_from_the_base(layer: int, tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=3)
    context = make_context(make_bench(model, tmp_path), (layer,))
    response, direction = context.responses[layer][1], context.direction(layer, without=1)
    rollouts = response.fold.rollouts

    def log_probs_at(step: float) -> torch.Tensor:
        moved = copy.deepcopy(model).double()
        with torch.no_grad():
            for name, towards in direction.items():
                moved.get_parameter(name).add_(towards.double(), alpha=step)
            pairs = zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)
            return torch.stack([plain_log_probs(moved, *pair).sum() for pair in pairs])

    moved = (log_probs_at(response.distance_step) - log_probs_at(0)).square().mean() ** 0.5
    assert float(moved) == pytest.approx(TARGET_DISTANCE, rel=0.15)  # lines are straight
    reach = float(np.prod(response.reaches)) ** 0.5
    # The halves of few prompts differ.
    assert reach * TARGET_DISTANCE / response.deviation == pytest.approx(response.distance_step, rel=0.5)


def test_each_part_has_its_own_reach() -> None:
    found = find_distance_steps(lambda step: [step, step * (1 + step**2) ** 0.5], TARGET_DISTANCE)
    slow, fast = (step / TARGET_DISTANCE for step in found.by_part)
    assert fast < found.step / TARGET_DISTANCE < slow
    assert slow == pytest.approx(1.0, rel=0.02)
    root = brentq(lambda step: step * (1 + step**2) ** 0.5 - TARGET_DISTANCE, 0.1, 10)
    assert isinstance(root, float) and fast == pytest.approx(root / TARGET_DISTANCE, rel=0.1)


def _score(gains: list[list[float]], reaches: list[float]) -> Any:
    context: Any = SimpleNamespace(
        layers=tuple(range(len(gains))), gains_per_kl=gains, reaches=lambda layer: [reaches[layer]] * 2
    )
    return PROBES["trusted_gain"].score(context)


def test_a_certain_gain_counts_in_full() -> None:
    found = _score([[0.1] * 3, [0.3] * 3, [0.2] * 3], [2.0, 1.0, 0.5])
    assert found.scores_L == pytest.approx([0.2, 0.3, 0.1])
    assert found.reliability == pytest.approx(1.0)


def test_where_the_gain_is_noise_the_reach_decides() -> None:
    gains = [[0.5, -0.3, 0.1], [-0.2, 0.6, -0.1], [0.3, -0.6, 0.45]]  # all three means are about .1 +- .25
    found = _score(gains, [0.5, 1.0, 2.0])
    assert np.argsort(found.scores_L).tolist() == [0, 1, 2]
    assert found.scores_L[1] / found.scores_L[0] == pytest.approx(2.0) and (found.scores_L > 0).all()


def test_noise_below_zero_does_not_turn_the_order_around() -> None:
    found = _score([[-0.5, 0.3], [0.2, -0.6], [0.3, -0.6]], [0.5, 1.0, 2.0])
    assert np.argsort(found.scores_L).tolist() == [0, 1, 2]


def test_a_layer_that_moves_nothing_scores_zero() -> None:
    assert _score([[0.0, 0.0], [0.2, 0.3]], [0.0, 1.0]).scores_L[0] == 0
    assert not _score([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]).scores_L.any()


def test_reaches_are_averaged_as_logarithms_with_one_relative_error() -> None:
    found = reach_scores([[0.5, 2.0], [4.0, 4.0], [0.0, 0.0]])
    assert found.errors_L is not None and found.scores_L == pytest.approx([1.0, 4.0, 0.0])
    relative = (np.var([np.log(0.5), np.log(2.0)], ddof=1) / 2 / 2) ** 0.5  # mean over the two layers that move
    assert found.errors_L == pytest.approx([relative, 4 * relative, 0.0])


def test_a_layer_that_moves_nothing_does_not_make_noise_look_certain() -> None:
    noisy = [[0.5, -0.3, 0.1], [-0.2, 0.6, -0.1], [0.3, -0.6, 0.45]]
    found = _score([*noisy, [0.0] * 3], [0.5, 1.0, 2.0, 0.0])
    assert found.scores_L[2] / found.scores_L[0] == pytest.approx(4.0) and found.scores_L[3] == 0


def test_the_error_of_one_sample_is_not_known() -> None:
    found = reach_scores([[0.5], [2.0]])
    assert found.errors_L == pytest.approx(found.scores_L)
