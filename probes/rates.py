"""Learning rates that are fair to every layer: at equal distance from the base model, as far away as training goes."""

from __future__ import annotations

import math

import numpy as np

from autolayer.probes.context import FAR, ProbeContext

BURST_STEPS = 5
"""Adam steps in one direction in which a short run is to be `FAR` away. Runs of 48 steps on LayerBench are best at two
thirds of that pace, but what layers are worth shows earliest at this one (examples/RESULTS.md)."""
PACE = 0.7
"""Where runs are longer they go slower: `FAR` in this many times the root of their steps, as a random walk would."""


def far_rates(context: ProbeContext, steps: float) -> dict[int, float | None]:
    """The learning rates at which so many Adam steps in one direction take the policy `FAR` away, by layer.

    `FAR` is the root mean square, in nats, of the log-ratio of the base's own completions; half its square estimates
    the KL divergence. Adam's first steps are its rate times the gradient's sign. Equal distance for a very small step
    would set early layers too fast and late ones too slow, since they differ in how the policy's movement grows with
    the step (`reach`): on LayerBench the best measured rate, over that of a small step, goes with the reach.

    Returns:
        None for a layer that moves nothing.
    """
    found: dict[int, float | None] = {}
    for layer in context.layers:
        deviation, reaches = context.deviation(layer), context.reaches(layer)
        moves = deviation > 0 and min(reaches) > 0
        found[layer] = float(np.exp(np.mean(np.log(reaches)))) * FAR / deviation / steps if moves else None
    return found


def steps_to_far(total_steps: int) -> float:
    """How fast a run of this length starts."""
    return max(BURST_STEPS, PACE * math.sqrt(total_steps))
