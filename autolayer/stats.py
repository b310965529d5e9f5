"""The few statistics that results rest on. numpy and scipy only."""

from __future__ import annotations

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


def paired_interval(after_I: Sequence[float], before_I: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of the item-wise differences with Student's t interval.

    Both runs answered the same items with the same sampling noise, so the items' difficulty cancels.

    Args:
        after_I: Reward per item after training, shape (items,).
        before_I: Reward of the same items before, same order.
        level: Coverage, such as 0.95.

    Raises:
        ValueError: Different lengths, or fewer than two items.
    """
    if len(after_I) != len(before_I) or len(after_I) < 2:
        raise ValueError(f"paired intervals need two or more pairs, got {len(after_I)} and {len(before_I)} items")
    difference_I = np.asarray(after_I, dtype=float) - np.asarray(before_I, dtype=float)
    mean = float(difference_I.mean())
    error = float(difference_I.std(ddof=1)) / math.sqrt(len(difference_I))
    reach = float(stats.t.ppf((1 + level) / 2, len(difference_I) - 1)) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach, level=level, num_items=len(difference_I))
