"""Uncertainty of a comparison of predictions, by resampling. Arrays: _L layers, _D draws.

Would a random ranking do as well (`chance`)? Would a repeated measurement reverse the order of two predictions
(`difference_under_noise`)? The random state is fixed, so that the same input gives the same answer.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from autolayer.comparison.metrics import checked, dense_ranks
from autolayer.core.statistics import Interval

LEVEL = 0.95
"""Coverage of the intervals."""
NUM_RESAMPLES = 10_000
NUM_NOISE_DRAWS = 2_000
"""Fewer than for `chance`, since only their standard deviation is used."""


def chance(scores_L: ArrayLike, contribution_L: ArrayLike) -> float:
    """Returns the probability that a random ranking has this Spearman correlation or more (one-sided permutation test).

    Formula: (1 + permutations that reach it) / (1 + permutations) (R. Fisher 1935). Neighbouring layers resemble each
    other, so any smooth function of depth does well more often than this says.
    """
    scores_L, truth_L = unit_ranks(dense_ranks(scores_L)), unit_ranks(dense_ranks(contribution_L))
    shuffled_D_L = np.random.default_rng(0).permuted(np.tile(truth_L, (NUM_RESAMPLES, 1)), axis=1)
    reached = int((shuffled_D_L @ scores_L >= truth_L @ scores_L - 1e-9).sum())
    return (1 + reached) / (1 + NUM_RESAMPLES)


def difference_under_noise(
    scores_L: ArrayLike, other_L: ArrayLike, contribution_L: ArrayLike, errors_L: ArrayLike
) -> Interval:
    """Returns Spearman of one prediction minus that of another, with an interval for the measurement's noise.

    Every layer's contribution is drawn anew from Normal(C, error), both predictions are judged on the same draws, and
    the deviation of their difference makes a normal interval around the observed difference. It holds the noise of this
    measurement only, nothing about other models or tasks. A constant counts as correlation 0.
    """
    truth_L, generator = checked(contribution_L), np.random.default_rng(0)
    draws_D_L = truth_L + checked(errors_L) * generator.standard_normal((NUM_NOISE_DRAWS, len(truth_L)))
    contrast_L = unit_ranks(dense_ranks(scores_L)) - unit_ranks(dense_ranks(other_L))
    observed = float(unit_ranks(dense_ranks(truth_L)) @ contrast_L)
    half_width = float(stats.norm.ppf((1 + LEVEL) / 2) * (unit_ranks(draws_D_L) @ contrast_L).std(ddof=1))
    return Interval(
        value=observed, low=observed - half_width, high=observed + half_width, level=LEVEL, num_items=len(truth_L)
    )


def unit_ranks(values_L: ArrayLike) -> np.ndarray:
    """Returns midranks of mean 0 and length 1 along the last axis, so that Spearman is a dot product."""
    ranks_L = stats.rankdata(values_L, axis=-1)
    ranks_L = ranks_L - ranks_L.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(ranks_L, axis=-1, keepdims=True)
    return ranks_L / np.where(length > 0, length, 1)
