"""Computes the learning rates that the race tries for a set of layers."""

from autolayer.search.records import Candidate, RaceConfig

RATE_STEPS = (0.0, 0.5, -0.5)
"""Exponents of `rate_span`, in the order in which rates are tried: starting rate, one step up, one step down."""


def slot_learning_rate(config: RaceConfig, candidate: Candidate, rate_index: int) -> float:
    """Returns the starting rate times `rate_span ** RATE_STEPS[rate_index]`, or the starting rate if it is fixed."""
    if config.fixed_rate:
        return candidate.learning_rate
    return candidate.learning_rate * config.rate_span ** RATE_STEPS[rate_index]
