"""The depth prior: its constants are those that examples/depth_prior.py fits, and its worth on left-out models."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autolayer.core import depth_prior

EXAMPLE = Path(__file__).parents[2] / "examples" / "depth_prior.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("depth_prior_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_constants_are_those_of_the_fit(example: Any) -> None:
    found = example.fit(example.FITTED)
    assert found[:3] == pytest.approx([depth_prior.RISE, depth_prior.FALL, depth_prior.FALL_DEPTH], abs=0.006)
    assert np.mean(example.levels(example.WHOLE, found)) == pytest.approx(depth_prior.LEVEL, abs=0.006)
    mean = depth_prior.predicted(range(1001), 1001).mean()
    assert mean == pytest.approx(depth_prior.MEAN_CONTRIBUTION, abs=0.02)


def test_a_left_out_family_is_ranked(example: Any) -> None:
    """Qwen3, from the small models alone: the AUC by hand, over 260 pairs of a best and another layer of Qwen3-4B."""
    parameters = example.fit(example.without("Qwen3"))
    shape_L = depth_prior.depth_curve(np.arange(36) / 35, *parameters[:3])
    best = (16, 14, 19, 22, 17, 15, 12, 18, 20, 10)
    won = [shape_L[one] > shape_L[other] for one in best for other in range(36) if other not in best]
    assert len(won) == 260 and example.judge("qwen3-4b", shape_L)["AUC best"] == pytest.approx(np.mean(won))
    assert np.mean(won) > 0.9 and shape_L.argmax() == 16


def test_the_shape_by_hand() -> None:
    assert depth_prior.depth_curve(0.0) == pytest.approx(-0.6 * 0.45 - 0.87 / (1 + np.exp(9.5)))
    assert depth_prior.depth_curve(0.76) == pytest.approx(-0.87 / 2)
    assert depth_prior.predicted([0], 1) == pytest.approx(depth_prior.predicted([0], 28)), "a model of one layer"


def test_intervals_hold_most_published_values_of_the_middle(example: Any) -> None:
    """Layers 9 to 16 of Qwen3-1.7B: no tighter than they vary."""
    low_L, high_L = depth_prior.position_interval(range(28), 28)
    values = example.CURVES["qwen3-1.7b"].values()
    inside = [low_L[layer] <= values[layer] <= high_L[layer] for layer in range(28)]
    assert 0.6 < np.mean(inside) < 1
