"""The learning rates that the race tries for a set of layers."""

from __future__ import annotations

from autolayer.search.records import Candidate, RaceConfig

RATE_STEPS = (0.0, 0.5, -0.5)
"""Exponents of the rate span, in the order of trial: the starting rate, one step up, one step down."""


def slot_learning_rate(config: RaceConfig, candidate: Candidate, rate_index: int) -> float:
    """Returns the learning rate of a slot: the starting rate times the span to the power of the index's exponent."""
    if config.fixed_rate:
        return candidate.learning_rate
    return candidate.learning_rate * config.rate_span ** RATE_STEPS[rate_index]
