"""Learning rates that are fair to every layer: at equal distance from the base model, as far away as training goes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from autolayer.probes.context import ProbeContext

BURST_STEPS = 10
"""Adam steps in one direction in which a short run is to be `FAR` away: of the paces tried, the one at which the first
steps of a race tell most about what layers are worth (examples/RESULTS.md)."""
PACE = 1.4
"""Where runs are longer they go slower: `FAR` in this many times the root of their steps, as a random walk would."""
MAX_RATIO = 3.0
"""A rate this many times the median layer's is taken for an error of measurement: few prompts make some, and a run that
starts too fast destroys the policy while one that starts too slow only learns less. True ones go up to about 2.8."""


def far_rates(context: ProbeContext, steps: float) -> dict[int, float | None]:
    """The learning rates at which so many Adam steps in one direction take the policy `FAR` away, by layer.

    `FAR` is the root mean square, in nats, of the log-ratio of the base's own completions; half its square estimates
    the KL divergence. Adam's first steps are its rate times the gradient's sign. Equal distance for a very small step
    would set early layers too fast and late ones too slow, since they differ in how the policy's movement grows with
    the step (`reach`); short runs at such rates tell less (examples/RESULTS.md).

    Returns:
        None for a layer that moves nothing.
    """
    rates = {layer: context.far(layer) / steps for layer in context.layers}
    most = MAX_RATIO * statistics.median([rate for rate in rates.values() if rate] or [0.0])
    return {layer: min(rate, most) if rate else None for layer, rate in rates.items()}


def together(rates: Iterable[float]) -> float:
    """The rate at which layers trained together move the policy as far as each alone: like independent errors."""
    return sum(rate**-2 for rate in rates) ** -0.5


def steps_to_far(total_steps: int) -> float:
    """How fast a run of this length starts."""
    return max(BURST_STEPS, PACE * math.sqrt(total_steps))
