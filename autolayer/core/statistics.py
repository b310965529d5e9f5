"""Confidence intervals for the difference of two evaluations on the same items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its confidence interval."""

    value: float
    low: float
    high: float
    level: float
    num_items: int


def paired_interval(
    after_I: Sequence[float], before_I: Sequence[float], level: float = 0.95, suites_I: Sequence[str] | None = None
) -> Interval:
    """Returns the mean of the item-wise differences after - before with Student's t interval of coverage `level`.

    Both runs answered the same items with the same sampling noise, so the items' difficulty cancels. With several
    suites, of two or more items each, it is the unweighted mean over them. Suites are fixed and only their items are a
    sample, so the variance is stratified, sum_s s_s^2 / (S^2 n_s), with the degrees of freedom of Satterthwaite (1946).
    """
    if len(after_I) != len(before_I) or len(after_I) < 2:
        raise ValueError(f"paired intervals need two or more pairs, got {len(after_I)} and {len(before_I)} items")
    difference_I = np.asarray(after_I, dtype=float) - np.asarray(before_I, dtype=float)
    names_I = np.zeros(len(difference_I)) if suites_I is None else np.asarray(suites_I)
    parts = [difference_I[names_I == name] for name in np.unique(names_I)]
    if min(map(len, parts)) < 2:
        raise ValueError(f"paired intervals need two or more pairs of every suite, got {[len(part) for part in parts]}")
    mean = float(np.mean([part.mean() for part in parts]))
    errors_S = np.array([part.std(ddof=1) / math.sqrt(len(part)) / len(parts) for part in parts])
    half_width = 0.0
    if errors_S.any():
        shares_S = errors_S**2 / (errors_S**2).sum()
        freedom = 1 / sum(share**2 / (len(part) - 1) for share, part in zip(shares_S, parts, strict=True))
        half_width = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(float((errors_S**2).sum()))
    return Interval(value=mean, low=mean - half_width, high=mean + half_width, level=level, num_items=len(difference_I))
