"""Metrics of a prediction of contribution against the measured one. Pure functions on numpy arrays.

A value that does not exist (the rank correlation of a constant) is None, never 0 or NaN. Scores that differ only by
rounding are tied. Where ties leave a choice open, a metric is its expected value over all choices.

Arrays: _L layers, _S training seeds, _N ways to break ties. Their uncertainty under noise is in resampling.py.
"""

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ROUNDING = 1e-9
"""Relative difference below which two scores are the same: |.6 - .4| and |.2 - .4| are equal on paper only."""
LEAST_WITHOUT_DEPTH = 6
"""Smallest number of layers from which a quadratic trend is removed: the fit uses up three, and three say nothing."""


def spearman(scores_L: ArrayLike, contribution_L: ArrayLike) -> float | None:
    """Returns Spearman's rank correlation: Pearson's on midranks (C. Spearman 1904).

    Args:
        scores_L: Any scores, higher meaning more contribution; shape (layers,).
        contribution_L: Measured, same shape.

    Returns:
        Between -1 and 1; None where either is constant, or with fewer than 3 layers.

    Example:
        >>> spearman([1, 2, 3, 4], [0.1, 0.9, 0.5, 1.0])
        0.7999999999999999
    """
    return _correlation(dense_ranks(scores_L), dense_ranks(contribution_L))


def spearman_without_depth(scores_L: ArrayLike, contribution_L: ArrayLike, depth_L: ArrayLike) -> float | None:
    """Returns Spearman's correlation of the residuals of a regression on depth and depth squared.

    A probe that only knows where the middle is scores 0 here. Adding any quadratic of depth to either side
    changes nothing.

    Args:
        scores_L: Shape (layers,).
        contribution_L: Same shape.
        depth_L: Layer numbers or relative depths, same shape.

    Returns:
        None with fewer than 6 layers, or where depth explains one side completely.
    """
    depth_L = checked(depth_L)
    if len(depth_L) < LEAST_WITHOUT_DEPTH:
        return None
    return _correlation(*(_residual_ranks(checked(values), depth_L) for values in (scores_L, contribution_L)))


def regret(scores_L: ArrayLike, contribution_S_L: ArrayLike, *, top: int = 1) -> float:
    """Returns the contribution lost by training the predicted layer instead of the best, on seeds that chose neither.

    Formula: mean over seeds s of C[best; s] - C[pick; s], `best` being best on the mean of the other seeds. The layer
    that is best on the same numbers it is scored on looks better than it is, so a plain maximum would charge its luck
    to the prediction. For top > 1 `pick` is that one of the top predicted layers that the other seeds judge best.

    Args:
        scores_L: Shape (layers,).
        contribution_S_L: Shape (seeds, layers). With a single seed the best layer is chosen in sample:
            max C - C[pick].
        top: How many predicted layers may be tried.

    Returns:
        In contribution. Below 0 where the pick did better on held-out seeds than the best of the others; never below
        0 with a single seed.
    """
    scores_L, truth_S_L = checked(scores_L), np.atleast_2d(checked(contribution_S_L))
    if truth_S_L.shape[1:] != scores_L.shape:
        raise ValueError(f"contribution of shape {truth_S_L.shape} does not fit scores of shape {scores_L.shape}")
    every, tried = np.arange(len(scores_L))[None], _top(scores_L, top)
    lost_S = []
    for seed, truth_L in enumerate(truth_S_L):
        others_L = truth_L if len(truth_S_L) == 1 else np.delete(truth_S_L, seed, axis=0).mean(axis=0)
        judge_L = dense_ranks(others_L)
        lost_S.append(_best_of(every, judge_L, truth_L) - _best_of(tried, judge_L, truth_L))
    return float(np.mean(lost_S))


def picks(scores_L: ArrayLike) -> list[int]:
    """Returns the indices of the highest score: one, or all that are tied for it."""
    ranks_L = dense_ranks(scores_L)
    return np.flatnonzero(ranks_L == ranks_L.max()).tolist()


def coverage(contribution_L: ArrayLike, low_L: ArrayLike, high_L: ArrayLike) -> float:
    """Returns the share of the layers with low <= C <= high; shapes (layers,)."""
    truth_L, low_L, high_L = checked(contribution_L), checked(low_L), checked(high_L)
    return float(((low_L <= truth_L) & (truth_L <= high_L)).mean())


def winkler(contribution_L: ArrayLike, low_L: ArrayLike, high_L: ArrayLike, *, alpha: float = 0.2) -> float:
    """Returns the mean interval score; lower is better. It rewards narrow intervals and fines those that miss.

    Formula: (high - low) + 2/alpha * (low - C) where C < low, + 2/alpha * (C - high) where C > high (R. Winkler 1972;
    T. Gneiting and A. Raftery 2007, section 6.2). Shapes (layers,); alpha = 1 - level.
    """
    truth_L, low_L, high_L = checked(contribution_L), checked(low_L), checked(high_L)
    missed_L = np.maximum(low_L - truth_L, 0) + np.maximum(truth_L - high_L, 0)
    return float((high_L - low_L + 2 / alpha * missed_L).mean())


def dense_ranks(values_L: ArrayLike, *, tolerance: float = 0.0) -> np.ndarray:
    """Returns ranks: 0 for the lowest value, 1 for the next higher one, and so on; shape (layers,).

    Args:
        values_L: Shape (layers,).
        tolerance: Absolute difference below which values are the same, besides `ROUNDING`.
    """
    values_L = checked(values_L)
    order = np.argsort(values_L, kind="stable")
    rising = values_L[order]
    steps = np.diff(rising) > tolerance + ROUNDING * np.abs(rising[1:])
    ranks_L = np.empty(len(values_L), dtype=int)
    ranks_L[order] = np.concatenate([[0], np.cumsum(steps)])
    return ranks_L


def checked(values: ArrayLike) -> np.ndarray:
    """Returns the values as an array of floats.

    Raises:
        ValueError: The array is empty or holds a number that is not finite; a failure must not become a metric.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("metrics need finite numbers, one or more")
    return array


def _correlation(first_L: np.ndarray, second_L: np.ndarray) -> float | None:
    if first_L.shape != second_L.shape:
        raise ValueError(f"{len(first_L)} scores do not fit {len(second_L)} contributions")
    if len(first_L) < 3 or first_L.max() == 0 or second_L.max() == 0:
        return None
    return float(stats.spearmanr(first_L, second_L).statistic)


def _residual_ranks(values_L: np.ndarray, depth_L: np.ndarray) -> np.ndarray:
    """Returns ranks of the residuals of values = a + b depth + c depth^2; all 0 where that explains everything."""
    centred_L = (depth_L - depth_L.mean()) / max(float(np.abs(depth_L - depth_L.mean()).max()), ROUNDING)
    terms_L_3 = np.stack([np.ones_like(centred_L), centred_L, centred_L**2], axis=1)
    fitted_L = terms_L_3 @ np.linalg.lstsq(terms_L_3, values_L, rcond=None)[0]
    return dense_ranks(values_L - fitted_L, tolerance=ROUNDING * float(np.abs(values_L).max()))


def _top(scores_L: np.ndarray, top: int) -> np.ndarray:
    """Returns the layers to try, one row for every equally good way to choose them; shape (ways, top)."""
    ranks_L, top = dense_ranks(scores_L), min(top, len(scores_L))
    border = np.sort(ranks_L)[-top]
    sure = np.flatnonzero(ranks_L > border).tolist()
    tied = np.flatnonzero(ranks_L == border).tolist()
    return np.array([[*sure, *some] for some in combinations(tied, top - len(sure))])


def _best_of(tried_N_L: np.ndarray, judge_L: np.ndarray, truth_L: np.ndarray) -> float:
    """Returns the true value of the layer that the judge ranks highest; the mean over ways, and over tied layers."""
    judged_N_L = judge_L[tried_N_L]
    best_N_L = judged_N_L == judged_N_L.max(axis=1, keepdims=True)
    return float(((truth_L[tried_N_L] * best_N_L).sum(axis=1) / best_N_L.sum(axis=1)).mean())
