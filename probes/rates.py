"""Learning rates that are fair to every layer: at equal distance from the base model, as far away as training goes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from autolayer.probes.context import FAR, ProbeContext
from autolayer.probes.reach import reach_scores

BURST_STEPS = 10
"""Adam steps in one direction in which a short run is to be `FAR` away: of the paces tried, the one at which the first
steps of a race tell most about what layers are worth (examples/RESULTS.md)."""
PACE = 1.4
"""Where runs are longer they go slower: `FAR` in this many times the root of their steps, as a random walk would."""


def far_rates(context: ProbeContext, steps: float) -> dict[int, float | None]:
    """The learning rates at which so many Adam steps in one direction take the policy `FAR` away, by layer.

    `FAR` is the root mean square, in nats, of the log-ratio of the base's own completions; half its square estimates
    the KL divergence. Adam's first steps are its rate times the gradient's sign. Equal distance for a very small step
    would set early layers too fast and late ones too slow, since they differ in how the policy's movement grows with
    the step (`reach`); short runs at such rates tell less (examples/RESULTS.md).

    Returns:
        None for a layer that moves nothing.
    """
    reach_L = reach_scores([context.reaches(layer) for layer in context.layers]).scores_L
    deviations = [context.deviation(layer) for layer in context.layers]
    return {
        layer: float(reach) * FAR / deviation / steps if reach > 0 and deviation > 0 else None
        for layer, reach, deviation in zip(context.layers, reach_L, deviations, strict=True)
    }


def together(rates: Iterable[float]) -> float:
    """The rate at which layers trained together move the policy as far as each alone: like independent errors."""
    return sum(rate**-2 for rate in rates) ** -0.5


def steps_to_far(total_steps: int) -> float:
    """How fast a run of this length starts."""
    return max(BURST_STEPS, PACE * math.sqrt(total_steps))
