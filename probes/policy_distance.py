"""Distance between the policy and the base, and the step of one layer at which it reaches a fixed distance.

The distance is the root mean square, in nats, of the log-ratio of whole completions that the base sampled. Half its
square estimates the KL divergence without importance weights (estimator k2 of joschu.net/blog/kl-approx.html).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TARGET_DISTANCE = 1.5
"""Distance, in nats, that training typically covers: a KL divergence of about 1."""
NUM_DISTANCE_STEPS = 3
"""Steps tried on the way to the target distance."""
MAX_REACH = 10.0
"""Bound of the result: at most this many times longer or shorter than the step that a linear policy would need."""


@dataclass(frozen=True, kw_only=True)
class DistanceSteps:
    """Steps at which the policy is `TARGET_DISTANCE` from the base."""

    step: float
    """Measured on all completions."""
    by_part: tuple[float, ...]
    """Measured on each part of the completions alone, from the same trials."""


def find_distance_steps(distances_at: Callable[[float], Sequence[float]], linear_step: float) -> DistanceSteps:
    """Finds the step that moves the policy by `TARGET_DISTANCE`, by interpolation between a few trial steps.

    `distances_at` gives the distance after a step, in nats, by each of several equal parts of the completions.
    `linear_step` is the step that would do it if the policy moved in proportion to the step.
    """
    tried: list[tuple[float, Sequence[float]]] = []

    def crossing(distances: Sequence[float]) -> float:
        least = 1e-3 * TARGET_DISTANCE
        # A policy whose log-probabilities are NaN is beyond any distance.
        logs = [math.log(max(distance, least)) if math.isfinite(distance) else 10.0 for distance in distances]
        step = _interpolate(list(zip([math.log(step) for step, _ in tried], logs, strict=True)))
        return min(max(step, linear_step / MAX_REACH), linear_step * MAX_REACH)

    step = linear_step
    for _ in range(NUM_DISTANCE_STEPS):
        tried.append((step, distances_at(step)))
        step = crossing([math.sqrt(sum(part * part for part in parts) / len(parts)) for _, parts in tried])
    by_part = tuple(crossing(parts) for parts in zip(*(parts for _, parts in tried), strict=True))
    return DistanceSteps(step=step, by_part=by_part)


def _interpolate(tried: list[tuple[float, float]]) -> float:
    """Returns the step at the target distance from trials (log step, log distance); beyond them in proportion."""
    known, target = sorted(tried), math.log(TARGET_DISTANCE)
    for (left, low), (right, high) in itertools.pairwise(known):
        if low <= target < high:
            return math.exp(left + (right - left) * (target - low) / (high - low))
    log_step, log_distance = known[-1] if known[-1][1] < target else known[0]
    return math.exp(log_step + target - log_distance)
