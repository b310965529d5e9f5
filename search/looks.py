"""When an arm has clearly lost, so that the rest of its evaluation need not be made.

While an arm is evaluated it is held against a rival, item by item. The test may be made after any number of items, and
however often: it is an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv 2103.06476)
of the mean difference, one-sided. If the differences have mean 0 and variance 1, their sum S after n items makes

    2 / sqrt(v) exp(x^2 / 2) Phi(x),    x = RHO S / sqrt(v),    v = n RHO^2 + 1

(nearly) a martingale that starts at 1: the mixture of exp(m S - n m^2 / 2) over the positive half of a normal m of
standard deviation RHO. It reaches 1/alpha with a probability of alpha at the most, whenever one looks. For x > 0,
Phi(x) is at least 1 - exp(-x^2 / 2), so x^2 = 2 log(1 + sqrt(v) / (2 alpha)) is far enough.

What it cannot know of: a reward that is rare and larger than any that was seen so far. The rival is the best of several
on these very items and so a little lucky; that is what ALPHA is small for (test_looks.py simulates a dozen).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from autolayer.core.arms import RungResult

ALPHA = 0.01
"""Probability of stopping an arm that is as good as its rival: in a race of a dozen evaluations, one in nine races."""
MIN_SEEN = 32
"""Items before the first look: the test is asymptotic, and as few as a whole evaluation may have are not worth cutting
(`plan.MIN_SELECT`)."""
PLANNED = 64
"""Items at which the test is sharpest; between half and twice as many it is hardly worse."""


def looks(num_items: int) -> tuple[int, ...]:
    """After how many items of an evaluation one looks: a quarter and a half.

    What lies between two looks is a batch of its own, which takes as long as its longest completion. More looks would
    cost more time than they save, and at one after the half there is little left to save.
    """
    return tuple(seen for seen in (num_items // 4, num_items // 2) if seen >= MIN_SEEN)


def next_look(rewards_I: Sequence[float], rival_I: Sequence[float]) -> int:
    """Up to which item an evaluation goes on from these rewards: no further once the arm has lost."""
    seen = len(rewards_I)
    if seen and has_lost(rewards_I, rival_I):
        return seen
    return next((look for look in (*looks(len(rival_I)), len(rival_I)) if look > seen), seen)


def has_lost(rewards_I: Sequence[float], rival_I: Sequence[float], alpha: float = ALPHA) -> bool:
    """True if an arm with these rewards on the first items is below its rival.

    Args:
        rewards_I: The arm's, of the items seen so far.
        rival_I: The rival's, of these items at the least.
        alpha: Probability of saying so of an arm that is not below, all looks together; less than a half.
    """
    return bool(are_below(np.array(rewards_I, dtype=float), np.array(rival_I[: len(rewards_I)], dtype=float), alpha))


def are_below(rewards_X_I: np.ndarray, rival_X_I: np.ndarray, alpha: float) -> np.ndarray:
    """`has_lost` of any number of arms at once, the items last."""
    num = rewards_X_I.shape[-1]
    if num < 2:
        return np.zeros(rewards_X_I.shape[:-1], dtype=bool)
    difference_X_I = rewards_X_I - rival_X_I
    # Items that happen to differ alike give no certainty: as if one of them had been an odd one (evidence.py).
    floor_X = np.var(np.concatenate([rewards_X_I, rival_X_I], axis=-1), axis=-1) / num
    sd_X = np.sqrt(np.maximum(np.var(difference_X_I, axis=-1, ddof=1), floor_X))
    return difference_X_I.mean(axis=-1) < -bound(num, alpha) * sd_X


def bound(num: int, alpha: float) -> float:
    """Standard deviations of a single difference by which a mean over `num` items has to lie off."""
    # The best RHO for a two-sided bound at 2 alpha, after the paper, to which the one-sided comes close.
    twice = -2 * math.log(2 * alpha)
    rho_squared = (twice + math.log(twice + 1)) / PLANNED
    spread = num * rho_squared + 1
    return math.sqrt(2 * spread / (num**2 * rho_squared) * math.log(1 + math.sqrt(spread) / (2 * alpha)))


def rival(base_I: Sequence[float], results: Iterable[RungResult]) -> tuple[float, ...]:
    """Rewards of the best of these and the base model; of equals the first counts, the base before all.

    One that was stopped itself has lost to another, and has not all the rewards.
    """
    whole = [result.select_rewards_I for result in results if len(result.select_rewards_I) == len(base_I)]
    return tuple(max([tuple(base_I), *whole], key=lambda rewards_I: math.fsum(rewards_I)))
