"""Probe `reach`: how far a layer can be moved until the policy is a fixed distance from the base."""

from collections.abc import Sequence

import numpy as np

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class Reach(Probe):
    """Scores a layer by its step to a fixed distance from the base, over the step that a linear policy would need.

    Formula: score_l = s d / D, with D = `TARGET_DISTANCE` nats, s the sign step at which the root mean square of the
    sequence log-ratio is D, and d the log-ratio's deviation per unit of a small step. It is 1 where the policy is
    linear in the layer. Later layers amplify what an early layer changes, so it is below 1 there; the effect of a late
    layer flattens out. Shape (candidates,), between 1/10 and 10.
    Source: our own; trust regions as in arXiv 1502.05477.
    Cost: three forward passes of some prompts per layer and fold beyond those of `gain_per_kl`.
    Measured: mean Spearman .35 with contribution and regret .15 on 23 environments of LayerBench, where `position` has
    .20 and .18; ten prompts rank layers as well as sixty (examples/RESULTS.md). It has a part in the prediction.
    Known to fail: it says how far a layer can go, not whether that is worth anything (`trusted_gain` multiplies the
    two).
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        return reach_scores([context.reaches(layer) for layer in context.layers])


def reach_scores(reaches_L: Sequence[Sequence[float]]) -> Scores:
    """Returns the geometric mean of each layer's samples.

    The relative error is taken to be the same for every layer, since each has few samples.

    Args:
        reaches_L: One or more positive samples of each candidate; a layer with a sample of 0 scores 0.
    """
    alive_L = np.array([min(reaches) > 0 for reaches in reaches_L])
    logs_L = [np.log(np.maximum(reaches, 1e-9)) for reaches in reaches_L]
    scores_L = np.where(alive_L, np.exp([np.mean(logs) for logs in logs_L]), 0.0)
    several = [logs for logs, alive in zip(logs_L, alive_L, strict=True) if alive and len(logs) > 1]
    # A single sample does not tell its error, which is then taken to be as large as the value.
    relative = float(np.mean([np.var(logs, ddof=1) / len(logs) for logs in several])) ** 0.5 if several else 1.0
    return Scores(scores_L=scores_L, errors_L=scores_L * relative)
