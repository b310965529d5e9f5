"""The statistics of measured contributions against simulated truth."""

import numpy as np
import pytest

from autolayer.measurement.estimate import Estimate, estimate, seed_noise

FULL_GAIN = 0.3


def simulate(
    random: np.random.Generator,
    *,
    layers: int = 12,
    seeds: int = 3,
    items: int = 400,
    common_sd: float = 0.01,
    own_sd: float = 0.02,
    noise_sd: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """Contributions, and gains by arm, seed and item from the two-way model, with three kinds of item noise."""
    contribution_L = random.uniform(0, 1, layers)
    mean_A = np.append(contribution_L, 1) * FULL_GAIN
    mean_A_S = mean_A[:, None] + random.normal(0, common_sd, seeds) + random.normal(0, own_sd, (layers + 1, seeds))
    easy_I = random.normal(0, 0.3, items)
    taste_A_I = random.normal(0, 0.1, (layers + 1, 1, items))
    noise_A_S_I = random.normal(0, noise_sd, (layers + 1, seeds, items))
    return contribution_L, mean_A_S[:, :, None] + easy_I + taste_A_I + noise_A_S_I


def repeat(number: int, **options) -> list[tuple[np.ndarray, np.ndarray, Estimate]]:
    random = np.random.default_rng(1)
    sets = [simulate(random, **options) for _ in range(number)]
    return [(truth, gains, estimate(gains, num_draws=400, seed=i)) for i, (truth, gains) in enumerate(sets)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"common_sd": 0.0},
        {"common_sd": 0.02, "own_sd": 0.01},
        {"seeds": 2, "layers": 6},
        {"noise_sd": 0.6, "own_sd": 0.005},
        {"seeds": 1, "common_sd": 0.0, "own_sd": 0.0},
    ],
    ids=str,
)
def test_intervals_cover_the_truth_as_often_as_they_say(options: dict) -> None:
    runs = repeat(120, **options)
    covered = [
        interval.low <= contribution <= interval.high
        for truth_L, _, found in runs
        for contribution, interval in zip(truth_L, found.contribution_L, strict=True)
    ]
    assert 0.92 <= np.mean(covered) <= 0.98
    assert np.mean([found.full.low <= FULL_GAIN <= found.full.high for *_, found in runs]) >= 0.88


@pytest.mark.parametrize("noise_sd", [0.05, 0.6])
def test_seed_noise_is_that_of_training_whatever_evaluation_adds(noise_sd: float) -> None:
    random = np.random.default_rng(2)
    found = [seed_noise(simulate(random, noise_sd=noise_sd)[1]) for _ in range(150)]
    assert np.mean([each.residual - each.items for each in found]) == pytest.approx(0.02**2, rel=0.1)
    assert np.mean([each.common for each in found]) == pytest.approx(0.01**2, rel=0.35)


@pytest.mark.parametrize("own_sd", [0.02, 0.08])
def test_the_ceiling_is_what_the_truth_correlates_with_the_means(own_sd: float) -> None:
    runs = repeat(100, own_sd=own_sd, layers=24)
    reached = [np.corrcoef(truth, gains[:-1].mean((1, 2)))[0, 1] for truth, gains, _ in runs]
    assert np.mean([found.ceiling or 0.0 for *_, found in runs]) == pytest.approx(np.mean(reached), abs=0.02)


def test_layers_without_differences_have_no_ceiling_to_reach() -> None:
    gains = np.random.default_rng(3).normal(0.3, 0.5, (9, 3, 200))
    found = estimate(gains, num_draws=400)
    assert found.ceiling is not None and found.ceiling < 0.8
    assert len(found.best) >= 7


def test_items_are_resampled_together() -> None:
    """A layer that answers every item like the full model contributes exactly 1, however few the items."""
    gain_S_I = np.random.default_rng(4).binomial(1, 0.5, (1, 40)).astype(float)
    found = estimate(np.stack([gain_S_I, gain_S_I]))
    (interval,) = found.contribution_L
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)
    assert found.full.low < found.full.value < found.full.high


def test_one_seed_or_one_layer_leaves_open_what_it_cannot_say() -> None:
    _, gains = simulate(np.random.default_rng(5))
    one_seed, one_layer = estimate(gains[:, :1]), estimate(gains[[0, -1]])
    assert (one_seed.seed_sd, one_seed.ceiling) == (None, None)
    assert one_layer.seed_sd is not None and one_layer.ceiling is None and one_layer.best == (0,)


def test_the_best_comes_first_and_only_what_is_clearly_worse_is_left_out() -> None:
    gains = np.random.default_rng(6).normal(0, 0.2, (5, 3, 500)) + np.array([0.1, 0.31, 0.3, 0.0, 0.4])[:, None, None]
    found = estimate(gains, num_draws=400)
    assert sorted(found.best) == [1, 2]
    assert found.best[0] == gains[:-1].mean((1, 2)).argmax()


def test_a_full_gain_that_may_be_zero_gives_no_contributions() -> None:
    gains = np.random.default_rng(7).normal(0.01, 0.5, (4, 3, 200))
    found = estimate(gains)
    assert found.full.low <= 0 and found.contribution_L == ()


def test_same_gains_and_seed_give_the_same_numbers() -> None:
    _, gains = simulate(np.random.default_rng(8))
    one, other = estimate(gains, num_draws=700, seed=3), estimate(gains, num_draws=700, seed=3)
    assert one.contribution_L == other.contribution_L and one.full == other.full
