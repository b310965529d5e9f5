"""Metrics of a prediction against scipy, numpy and numbers worked out by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autolayer.comparison import metrics
from autolayer.comparison.published import published
from autolayer.comparison.resampling import chance, difference_under_noise
from autolayer.core import depth_prior

RANDOM = np.random.default_rng(0)
PAIRS = [(RANDOM.normal(size=n), RANDOM.normal(size=n)) for n in (4, 8, 28)]
PAIRS.append((RANDOM.integers(0, 3, 12).astype(float), RANDOM.integers(0, 4, 12).astype(float)))  # many ties


def scipys(statistic: Any, first_L: Any, second_L: Any) -> float:
    """Untyped here: scipy's result is a tuple that has the value as an attribute as well."""
    return float(statistic(first_L, second_L).statistic)


# Rank correlations


@pytest.mark.parametrize(("scores_L", "truth_L"), PAIRS)
def test_rank_correlations_are_scipys(scores_L: np.ndarray, truth_L: np.ndarray) -> None:
    assert metrics.spearman(scores_L, truth_L) == pytest.approx(scipys(stats.spearmanr, scores_L, truth_L))


def test_a_constant_has_no_rank_correlation() -> None:
    for first, second in [([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [2, 2, 2, 2])]:
        assert metrics.spearman(first, second) is None


def test_rounding_does_not_break_ties() -> None:
    """In a model of six layers 1 and 3 are equally close to depth .4, though not in floating point."""
    scores_L = -abs(np.arange(6) / 5 - 0.4)
    assert scores_L[1] != scores_L[3] and metrics.picks(scores_L) == [2]
    assert metrics.dense_ranks(scores_L).tolist() == [1, 2, 3, 2, 1, 0]


@pytest.mark.parametrize("wrong", [[1.0, float("nan"), 2.0], [1.0, float("inf"), 2.0], []])
def test_what_is_no_number_is_no_metric(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.spearman(wrong, wrong)


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="4 scores do not fit 3"):
        metrics.spearman([1, 2, 3, 4], [1, 2, 3])
    with pytest.raises(ValueError, match="does not fit"):
        metrics.regret([1, 2, 3, 4], [[1, 2, 3]])


# Regret


def test_rotated_regret_by_hand() -> None:
    truth_S_L = [[1.0, 0.6, 0.2], [0.4, 0.9, 0.3], [0.8, 0.5, 0.7]]
    scores_L = [0, 1, 2]  # picks layer 2
    # Held out 0: others' means .60 .70 .50, best 1: .6 - .2. Held out 1: .90 .55 .45, best 0: .4 - .3.
    # Held out 2: .70 .75 .25, best 1: .5 - .7.
    assert metrics.regret(scores_L, truth_S_L) == pytest.approx((0.4 + 0.1 - 0.2) / 3)


def test_one_seed_is_judged_in_sample() -> None:
    truth_L = [0.2, 1.1, 0.9, 0.5]
    assert metrics.regret([4, 1, 2, 3], truth_L) == pytest.approx(0.9)


def test_ties_cost_their_expected_value() -> None:
    truth_L = np.array([0.2, 1.1, 0.9, 0.5])
    assert metrics.regret([1, 0, 1, 0], truth_L) == pytest.approx(1.1 - (0.2 + 0.9) / 2)


def test_equal_scores_have_the_regret_of_a_random_ranking() -> None:
    generator = np.random.default_rng(1)
    truth_S_L = generator.normal(size=(3, 6))
    drawn = [metrics.regret(generator.permutation(6), truth_S_L) for _ in range(4000)]
    assert metrics.regret(np.zeros(6), truth_S_L) == pytest.approx(np.mean(drawn), abs=0.05)


def test_rotation_takes_the_winners_luck_out() -> None:
    """If all layers are equally good, nothing can be lost, though a maximum of noisy means says so."""
    generator = np.random.default_rng(2)
    runs = [generator.normal(size=(3, 10)) for _ in range(500)]
    rotated = [metrics.regret(np.arange(10), truth_S_L) for truth_S_L in runs]
    in_sample = [metrics.regret(np.arange(10), truth_S_L.mean(0)) for truth_S_L in runs]
    assert abs(np.mean(rotated)) < 0.15 < 0.7 < np.mean(in_sample)


# Intervals


def test_coverage_counts_both_ends() -> None:
    assert metrics.coverage([0, 1, 2, 3], [0, 0, 0, 0], [2, 2, 2, 2]) == 0.75


def test_winkler_by_hand() -> None:
    assert metrics.winkler([0.5], [0.0], [1.0]) == 1.0
    assert metrics.winkler([-0.1], [0.0], [1.0]) == pytest.approx(1 + 10 * 0.1)
    assert metrics.winkler([1.3], [0.0], [1.0]) == pytest.approx(1 + 10 * 0.3)
    assert metrics.winkler([1.3], [0.0], [1.0], alpha=0.5) == pytest.approx(1 + 4 * 0.3)
    assert metrics.winkler([0.5, 1.3], [0.0, 0.0], [1.0, 1.0]) == pytest.approx(2.5)


def test_winkler_is_lowest_for_the_true_quantiles() -> None:
    truth_L = np.random.default_rng(3).normal(size=20_000)
    scores = [metrics.winkler(truth_L, np.full(20_000, -reach), np.full(20_000, reach)) for reach in (1.0, 1.2816, 1.6)]
    assert min(scores) == scores[1]


# Noise


def test_chance_is_the_share_of_all_rankings_that_do_as_well() -> None:
    truth_L, scores_L = [0.1, 0.4, 0.2, 0.9, 0.5], [1, 2, 3, 4, 5]
    observed = scipys(stats.spearmanr, scores_L, truth_L)
    every = [scipys(stats.spearmanr, order, truth_L) >= observed - 1e-9 for order in itertools.permutations(range(5))]
    assert chance(scores_L, truth_L) == pytest.approx(np.mean(every), abs=0.01)
    assert chance(scores_L, truth_L) == chance(scores_L, truth_L)


def test_the_difference_under_noise() -> None:
    scores_L, truth_L = PAIRS[1]
    other_L = RANDOM.normal(size=8)
    exact = difference_under_noise(scores_L, other_L, truth_L, np.zeros(8))
    expected = scipys(stats.spearmanr, scores_L, truth_L) - scipys(stats.spearmanr, other_L, truth_L)
    assert (exact.low, exact.value, exact.high) == pytest.approx((expected,) * 3)
    noisy = difference_under_noise(scores_L, other_L, truth_L, np.full(8, 0.2))
    noisier = difference_under_noise(scores_L, other_L, truth_L, np.full(8, 0.8))
    assert noisier.low < noisy.low < noisy.value == noisier.value < noisy.high < noisier.high
    same = difference_under_noise(scores_L, scores_L, truth_L, np.full(8, 0.5))
    assert (same.low, same.value, same.high) == (0, 0, 0), "the noise of a common measurement is paired"


# Positions


def test_closeness_to_depth_40_reaches_its_published_value() -> None:
    """It is known to reach Spearman .76 on the Qwen3-1.7B curve."""
    values = published("qwen3-1.7b").values
    assert list(values) == list(range(28))
    truth_L = list(values.values())
    assert metrics.spearman(-abs(np.arange(28) / 27 - 0.4), truth_L) == pytest.approx(0.757, abs=0.001)
    assert int(np.argmax(truth_L)) == 10 and max(truth_L) == pytest.approx(1.14, abs=0.02)
    assert int(np.argmin(truth_L)) == 24 and min(truth_L) == pytest.approx(0.28, abs=0.02)
    assert np.mean(truth_L[:18]) == pytest.approx(0.90, abs=0.02) and np.mean(truth_L[18:]) == pytest.approx(
        0.42, abs=0.02
    )


def test_baselines_pick_what_their_names_say() -> None:
    for num_layers in (4, 5, 28, 36):
        picked = {name: metrics.picks(depth_prior.scores(name, range(num_layers), num_layers))
                  for name in depth_prior.DEPTH_BASELINES}  # fmt: skip
        assert picked["first"] == [0] and picked["last"] == [num_layers - 1] and picked["middle"] == [num_layers // 2]
        assert picked["position"] == [int(np.argmax(depth_prior.predicted(range(num_layers), num_layers)))]


def test_intervals_of_position_alone() -> None:
    """Layers 0, 13 and 27 of 28, by hand.

    The first is 1.08 - .6 · .45 - .87 / (1 + exp(9.5)), with a half width of 1.2816 · √((.1 + .35 · .45)² + .1²).
    """
    low_L, high_L = depth_prior.position_interval(range(28), 28)
    middle_L = (low_L + high_L) / 2
    assert middle_L[[0, 13, 27]] == pytest.approx([0.8099, 1.0540, 0.2513], abs=1e-3)
    assert ((high_L - low_L) / 2)[[0, 13, 27]] == pytest.approx([0.354, 0.191, 0.396], abs=1e-3)
    assert metrics.picks(middle_L) == metrics.picks(depth_prior.scores("position", range(28), 28)) == [12]
    low_L, high_L = depth_prior.level_interval(range(4))
    assert low_L == pytest.approx(np.full(4, 0.8 - 1.2816 * 0.3)) and high_L == pytest.approx(1.6 - low_L)
