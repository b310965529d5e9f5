"""Starting learning rates: equal for every layer in the distance from the base at which training ends up."""

import math
import statistics
from collections.abc import Iterable

from autolayer.probes.context import ProbeContext

STEPS_TO_DISTANCE = 10
"""Adam steps in one direction after which a short run is `TARGET_DISTANCE` from the base. Of the values tried, this
one lets the first steps of a race tell most about the layers' contributions (examples/RESULTS.md)."""
RANDOM_WALK_FACTOR = 1.4
"""A long run is planned to be `TARGET_DISTANCE` from the base after this many times the square root of its steps, as a
random walk would be. So longer runs start at lower rates."""
TYPICAL_RATE = 0.3
"""Product of rate, steps and hidden width where no gradient is measured: 5e-5 for ten steps of SmolLM2-135M. At twice
that rate its layers learn well and those of Gemma 3 270M break (examples/RESULTS.md). A sign step moves a layer's
output in proportion to the width."""
MAX_RATIO = 3.0
"""Rates are lowered to at most this many times the median layer's. A higher one is taken for a measurement error, which
few prompts can cause: too high a rate destroys the policy, too low a one only learns less. True ratios reach 2.8."""


def starting_rates(context: ProbeContext, steps: float) -> dict[int, float | None]:
    """Returns the learning rate at which `steps` Adam steps take the policy `TARGET_DISTANCE` from the base, by layer.

    It is None for a layer that moves nothing. Adam's first steps are its rate times the gradient's sign, so the rate is
    the sign step at that distance over the number of steps. A rate at equal distance for a very small step would be too
    high for early layers and too low for late ones, since they differ in how the policy's movement grows with the step
    (probe `reach`); short runs at such rates tell less (examples/RESULTS.md).
    """
    if not context.plan.fold_prompts:
        width = context.bench.model.config.get_text_config(decoder=True).hidden_size
        return dict.fromkeys(context.layers, TYPICAL_RATE / width / steps)
    rates = {layer: context.distance_step(layer) / steps for layer in context.layers}
    most = MAX_RATIO * statistics.median([rate for rate in rates.values() if rate] or [0.0])
    return {layer: min(rate, most) if rate else None for layer, rate in rates.items()}


def combined_rate(rates: Iterable[float]) -> float:
    """Returns the rate at which layers trained together move the policy as far as each alone at its own rate."""
    # Their movements add up like independent errors: 1 / rate^2 is the sum of the layers' 1 / rate^2.
    return sum(rate**-2 for rate in rates) ** -0.5


def steps_to_distance(total_steps: int) -> float:
    """Returns the number of Adam steps after which a run of `total_steps` is to be `TARGET_DISTANCE` from the base."""
    return max(STEPS_TO_DISTANCE, RANDOM_WALK_FACTOR * math.sqrt(total_steps))
