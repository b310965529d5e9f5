"""Estimates contributions from rewards: point values, joint bootstrap intervals, seed noise and the ceiling.

Suffixes: _A arms (the layers, then full), _L layers, _S training seeds, _I items, _D bootstrap draws.

A gain is reward(arm, seed, item) - reward(base, item). Its means over items follow a two-way model,

    gain_A_S = g_A + u_S + e_A_S,

where u is common to all arms of a seed (same prompts, same sampling noise) and e is the noise of one training run. The
share of the residuals that comes from the finite number of items is estimated from the items and subtracted, because
the bootstrap over items counts it already. Shrinkage is left out on purpose: a table that shrinks layers towards each
other cannot be used to judge a prediction of them.
"""

from dataclasses import dataclass

import numpy as np

from autolayer.core.statistics import Interval

NUM_BOOTSTRAP_DRAWS = 4000
DRAWS_PER_CHUNK = 500
"""Draws computed at a time; with many items, the weights of all draws would not fit into memory."""

ESTIMATOR = (
    "value: mean gain over the seeds divided by the mean full-parameter gain (for full: the gain itself); interval: "
    "percentiles of {num_draws} joint bootstrap draws, the same resampled items for all arms and seeds, plus noise of "
    "the training seeds from a two-way model of arms and seeds"
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Contributions of all layers with their intervals."""

    gains_A_S: np.ndarray
    """Mean gain over the items."""
    full: Interval
    """The full-parameter gain, in reward."""
    contribution_L: tuple[Interval, ...]
    """Contribution of each layer; empty if `full.low` is not above 0, since the ratio then has no meaning."""
    best: tuple[int, ...]
    """Row of the best layer, then of those that cannot be told apart from it at the interval's level."""
    seed_sd: float | None
    """Standard deviation of one training run's gain between seeds, in reward; None with a single seed."""
    ceiling: float | None


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """Variances of the two-way model; all 0 with a single seed."""

    residual: float
    """Variance of e as observed, evaluation noise included."""
    items: float
    """The part of `residual` that comes from the finite number of items."""
    common: float
    """Variance of u."""
    freedom: int
    """Degrees of freedom of `residual`."""

    @property
    def own(self) -> float:
        """Variance of e alone: of one training run's gain, if it were scored on infinitely many items."""
        return max(0.0, self.residual - self.items)


def estimate(
    gain_A_S_I: np.ndarray, *, level: float = 0.95, num_draws: int = NUM_BOOTSTRAP_DRAWS, seed: int = 0
) -> Estimate:
    """Estimates contributions from gains in reward over the base model, the layers in order, then full-parameter RL."""
    gain_A_S_I = np.asarray(gain_A_S_I, dtype=float)
    assert gain_A_S_I.ndim == 3 and len(gain_A_S_I) >= 2 and np.isfinite(gain_A_S_I).all(), gain_A_S_I.shape
    noise = seed_noise(gain_A_S_I)
    value_A = gain_A_S_I.mean((1, 2))
    draws_D_A = _draws(gain_A_S_I, noise, num_draws, np.random.default_rng(seed))
    num_items = gain_A_S_I.shape[2]
    full = _interval(value_A[-1], draws_D_A[:, -1], level, num_items)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_D_L = draws_D_A[:, :-1] / draws_D_A[:, -1:]
        share_L = value_A[:-1] / value_A[-1]
    measurable = full.low > 0
    first = int(value_A[:-1].argmax())
    behind_D_L = draws_D_A[:, [first]] - draws_D_A[:, :-1]  # in gains: the sign needs no denominator
    tied = np.quantile(behind_D_L, (1 - level) / 2, axis=0) <= 0
    order = [int(row) for row in np.argsort(-value_A[:-1], kind="stable") if tied[row] and row != first]
    return Estimate(
        gains_A_S=gain_A_S_I.mean(2),
        full=full,
        contribution_L=tuple(
            _interval(share, share_D, level, num_items) for share, share_D in zip(share_L, share_D_L.T, strict=True)
        )
        if measurable
        else (),
        best=(first, *order),
        seed_sd=None if gain_A_S_I.shape[1] == 1 else noise.own**0.5,
        ceiling=ceiling(gain_A_S_I[:-1], noise),
    )


def seed_noise(gain_A_S_I: np.ndarray) -> SeedNoise:
    """Estimates the variance components of the training seeds by the method of moments."""
    num_arms, num_seeds, num_items = gain_A_S_I.shape
    if num_seeds == 1:
        return SeedNoise(residual=0.0, items=0.0, common=0.0, freedom=0)
    freedom = (num_arms - 1) * (num_seeds - 1)
    # Centred over arms and over seeds, item by item: the mean over items is e, the spread over items its error.
    left_A_S_I = gain_A_S_I - gain_A_S_I.mean(1, keepdims=True)
    left_A_S_I = left_A_S_I - left_A_S_I.mean(0, keepdims=True)
    residual = float((left_A_S_I.mean(2) ** 2).sum()) / freedom
    items = float(left_A_S_I.var(2, ddof=1).sum()) / num_items / freedom
    between = float(gain_A_S_I.mean((0, 2)).var(ddof=1))
    return SeedNoise(
        residual=residual,
        items=items,
        common=max(0.0, between - residual / num_arms),
        freedom=freedom,
    )


def ceiling(gain_L_S_I: np.ndarray, noise: SeedNoise) -> float | None:
    """Returns the noise ceiling: the root of the share of the variance between layers' mean gains that is not noise.

    It is the expected correlation of these means with the truth, so no prediction can be expected to do better. It is
    None with fewer than two layers or seeds.
    """
    num_layers, num_seeds, num_items = gain_L_S_I.shape
    if num_layers < 2 or num_seeds < 2:
        return None
    mean_L_I = gain_L_S_I.mean(1)
    observed = float(mean_L_I.mean(1).var(ddof=1))
    # Some items are easier for all layers alike, so only differences between layers count.
    apart_L_I = mean_L_I - mean_L_I.mean(0)
    sampling = float(apart_L_I.var(1, ddof=1).sum()) / (num_layers - 1) / num_items
    if observed == 0:
        return 0.0
    return max(0.0, 1 - (noise.own / num_seeds + sampling) / observed) ** 0.5


def _draws(gain_A_S_I: np.ndarray, noise: SeedNoise, num_draws: int, random: np.random.Generator) -> np.ndarray:
    """Returns bootstrap draws of the mean gains of all arms, (draws, arms)."""
    num_arms, num_seeds, num_items = gain_A_S_I.shape
    mean_A_I = gain_A_S_I.mean(1)
    even = np.full(num_items, 1 / num_items)
    parts = []
    for start in range(0, num_draws, DRAWS_PER_CHUNK):
        weight_D_I = random.multinomial(num_items, even, size=min(DRAWS_PER_CHUNK, num_draws - start)) / num_items
        parts.append(weight_D_I @ mean_A_I.T)
    draws_D_A = np.concatenate(parts)
    if num_seeds > 1:
        # The variance of few runs is uncertain itself: drawing it from a chi-square turns normal tails into Student's.
        spread_D = noise.freedom / random.chisquare(noise.freedom, num_draws)
        own_D = np.maximum(0.0, noise.residual * spread_D - noise.items)
        draws_D_A += random.normal(size=(num_draws, num_arms)) * np.sqrt(own_D / num_seeds)[:, None]
        draws_D_A += random.normal(size=(num_draws, 1)) * (noise.common / num_seeds) ** 0.5
    return draws_D_A


def _interval(value: float, draws_D: np.ndarray, level: float, num_items: int) -> Interval:
    low, high = np.quantile(draws_D, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high), level=level, num_items=num_items)
