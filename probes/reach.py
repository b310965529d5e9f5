"""How far a layer can go before the policy runs away."""

from __future__ import annotations

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class Reach(Probe):
    """Distance that a layer can go until the log-ratio has moved by `FAR` nats, over what a very small step promises.

    Formula: s d / FAR, with s the sign step at which the root mean square of the sequence log-ratio is FAR and d its
    deviation per unit of a small step; 1 for a layer that the policy is linear in. What an early layer changes is
    amplified by all that follow, so it is below 1 there; a late layer's effect flattens out.
    Shape (candidates,), between 1/10 and 10. Cost: three forwards of some prompts for each layer. Source: our own;
    trust regions as in arXiv 1502.05477.
    Known to fail: it says how far, not whether that is worth anything (`trusted_gain` multiplies the two).
    """

    def score(self, context: ProbeContext) -> Scores:
        return Scores.of_samples([context.reaches(layer) for layer in context.layers])
