"""How far a layer can go before the policy runs away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class Reach(Probe):
    """Step at which the policy has moved by `TARGET_DISTANCE` nats, over the step that a linear policy would need.

    Formula: s d / TARGET_DISTANCE, with s the sign step at which the root mean square of the sequence log-ratio is
    TARGET_DISTANCE and d its deviation per unit of a small step; 1 for a layer that the policy is linear in.
    What an early layer changes is
    amplified by all that follow, so it is below 1 there; a late layer's effect flattens out.
    Shape (candidates,), about between 1/10 and 10. Cost: three forwards of some prompts a layer and fold. Source:
    our own; trust regions as in arXiv 1502.05477. Ten prompts rank layers as well as sixty (examples/RESULTS.md).
    Known to fail: it says how far, not whether that is worth anything (`trusted_gain` multiplies the two).
    """

    def score(self, context: ProbeContext) -> Scores:
        return reach_scores([context.reaches(layer) for layer in context.layers])


def reach_scores(reaches_L: Sequence[Sequence[float]]) -> Scores:
    """Geometric means; their relative error is taken to be the same for every layer, since each has few samples."""
    alive_L = np.array([min(reaches) > 0 for reaches in reaches_L])
    logs_L = [np.log(np.maximum(reaches, 1e-9)) for reaches in reaches_L]
    scores_L = np.where(alive_L, np.exp([np.mean(logs) for logs in logs_L]), 0.0)
    several = [logs for logs, alive in zip(logs_L, alive_L, strict=True) if alive and len(logs) > 1]
    # Of a single sample the error is not known: it counts as large as the value itself.
    relative = float(np.mean([np.var(logs, ddof=1) / len(logs) for logs in several])) ** 0.5 if several else 1.0
    return Scores(scores_L=scores_L, errors_L=scores_L * relative)
