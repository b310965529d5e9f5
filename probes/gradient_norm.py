"""How steep the reward is in a layer's weights."""

from __future__ import annotations

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.gradient import inner


class GradientNorm(Probe):
    """Euclidean norm of the expected reward's gradient, averaged over the folds of the shared batch.

    Formula: score_l = mean_k ||g_l^k||_2. Shape (candidates,). Cost: nothing beyond the shared backward pass.
    Source: relative gradient norms choose blocks in surgical fine-tuning (arXiv 2210.11466).
    Known to fail: a large gradient says that the loss is steep, not how far one can go. On small models trained by
    GRPO its rank correlation with the measured contribution was between -.60 and .77, and it can pick the worst
    layer. It is reported, and has no part in the prediction.
    """

    def score(self, context: ProbeContext) -> Scores:
        return Scores.of_samples(
            [
                [inner(gradient[layer], gradient[layer]) ** 0.5 for gradient in context.gradients]
                for layer in context.layers
            ]
        )
