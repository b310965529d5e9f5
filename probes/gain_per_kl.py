"""Reward gained for each unit by which the policy moves."""

from __future__ import annotations

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class GainPerKL(Probe):
    """First-order gain of a sign step, per square root of the KL divergence it causes.

    Formula: d = sign(sum of g over the other folds), score_l = mean_k <d, g_k> / [sd_i(log pi(y_i; w + e d) -
    log pi(y_i; w)) / e]. Shape (candidates,), in reward per nat of deviation.
    Cost: a few small forwards per layer and fold. Source: natural-gradient reasoning (arXiv 1503.05671); measured on
    six small environments: mean regret .02 where `last` has .10 and `middle` .41.
    Known to fail: picks well but ranks the rest poorly (Spearman .26 to .83), and sees only the first step, so it is
    weak where the gain comes late.
    """

    def score(self, context: ProbeContext) -> Scores:
        return Scores.of_samples([context.gains_per_kl(layer) for layer in context.layers])
