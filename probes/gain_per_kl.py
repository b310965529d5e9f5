"""Probe `gain_per_kl`: reward gained for each unit by which a small step moves the policy."""

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class GainPerKL(Probe):
    """Scores a layer by the first-order gain of a sign step, per square root of the KL divergence that it causes.

    Formula: d = sign(sum of g over the other folds), score_l = mean_k <d, g_k> / [sd_i(log pi(y_i; w + e d) -
    log pi(y_i; w)) / e], with g_k the gradient on fold k and e a small step. Shape (candidates,), in reward per nat of
    deviation.
    Source: natural-gradient reasoning (arXiv 1503.05671).
    Cost: a few forward passes of some prompts per layer and fold, from the layer up.
    Measured: mean Spearman .16 with contribution and regret .15 on 23 environments of LayerBench, where `position` has
    .20 and .18 (examples/RESULTS.md). `trusted_gain` builds on it.
    Known to fail: it sees only the first step, so it is weak where the gain comes late, and it picks better than it
    ranks.
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        return Scores.of_samples([context.gains_per_kl(layer) for layer in context.layers])
