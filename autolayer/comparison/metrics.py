"""Metrics of a prediction of contribution against the measured one: pure functions on arrays, _L layers, _S seeds.

A value that does not exist (the rank correlation of a constant) is None, never 0 or NaN. Scores that differ only by
rounding are tied. Where ties leave a choice open, a metric is its mean over the tied layers.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ROUNDING = 1e-9
"""Relative difference below which two scores are the same: |.6 - .4| and |.2 - .4| are equal on paper only."""


def spearman(scores_L: ArrayLike, contribution_L: ArrayLike) -> float | None:
    """Returns Spearman's rank correlation, Pearson's on midranks (C. Spearman 1904), of two arrays of shape (layers,).

    It is None if either is constant, or with fewer than 3 layers.
    """
    first_L, second_L = dense_ranks(scores_L), dense_ranks(contribution_L)
    if first_L.shape != second_L.shape:
        raise ValueError(f"{len(first_L)} scores do not fit {len(second_L)} contributions")
    if len(first_L) < 3 or first_L.max() == 0 or second_L.max() == 0:
        return None
    return float(stats.spearmanr(first_L, second_L)[0])  # pyright: ignore[reportArgumentType]


def pearson(scores_L: ArrayLike, contribution_L: ArrayLike) -> float | None:
    """Returns Pearson's correlation of two arrays of shape (layers,), or None where `spearman` is None."""
    if spearman(scores_L, contribution_L) is None:
        return None
    return float(np.corrcoef(checked(scores_L), checked(contribution_L))[0, 1])


def auc(scores_L: ArrayLike, chosen_L: ArrayLike) -> float | None:
    """Returns the probability that one of the chosen layers scores higher than one of the others; ties count half.

    It is the area under the ROC curve (H. Mann and D. Whitney 1947). Shapes (layers,); `chosen_L` holds booleans. None
    if all layers are chosen, or no layer is.
    """
    ranks_L, chosen_L = dense_ranks(scores_L), np.asarray(chosen_L, dtype=bool)
    if chosen_L.all() or not chosen_L.any():
        return None
    pairs = chosen_L.sum() * (~chosen_L).sum()
    return float(stats.mannwhitneyu(ranks_L[chosen_L], ranks_L[~chosen_L]).statistic / pairs)


def regret(scores_L: ArrayLike, contribution_S_L: ArrayLike) -> float:
    """Returns the contribution lost by training the predicted layer instead of the best, on seeds that chose neither.

    Formula: mean over seeds s of C[best; s] - C[pick; s], `best` being best on the mean of the other seeds. The layer
    that is best on the same numbers it is scored on looks better than it is, so a plain maximum would charge its luck
    to the prediction. The shapes are (layers,) and (seeds, layers). With a single seed, the best layer is chosen in
    sample: max C - C[pick]. With several, the result is below 0 if the pick does better on held-out seeds than the best
    of the others.
    """
    scores_L, truth_S_L = checked(scores_L), np.atleast_2d(checked(contribution_S_L))
    if truth_S_L.shape[1:] != scores_L.shape:
        raise ValueError(f"contribution of shape {truth_S_L.shape} does not fit scores of shape {scores_L.shape}")
    lost_S = []
    for seed, truth_L in enumerate(truth_S_L):
        others_L = truth_L if len(truth_S_L) == 1 else np.delete(truth_S_L, seed, axis=0).mean(axis=0)
        lost_S.append(truth_L[picks(others_L)].mean() - truth_L[picks(scores_L)].mean())
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


def dense_ranks(values_L: ArrayLike) -> np.ndarray:
    """Returns ranks: 0 for the lowest value, 1 for the next higher one, and so on; shape (layers,)."""
    values_L = checked(values_L)
    order = np.argsort(values_L, kind="stable")
    rising = values_L[order]
    steps = np.diff(rising) > ROUNDING * np.abs(rising[1:])
    ranks_L = np.empty(len(values_L), dtype=int)
    ranks_L[order] = np.concatenate([[0], np.cumsum(steps)])
    return ranks_L


def checked(values: ArrayLike) -> np.ndarray:
    """Returns the values as an array of finite floats, or raises ValueError; a failure must not become a metric."""
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("metrics need finite numbers, one or more")
    return array
