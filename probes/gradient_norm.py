"""Probe `gradient_norm`: how steep the expected reward is in a layer's weights."""

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.gradient import inner


class GradientNorm(Probe):
    """Scores a layer by the Euclidean norm of the expected reward's gradient, averaged over the folds.

    Formula: score_l = mean_k ||g_l^k||_2, with g_l^k the gradient by layer l on fold k. Shape (candidates,), in reward
    per unit of weight.
    Source: relative gradient norms choose blocks in surgical fine-tuning (arXiv 2210.11466).
    Cost: nothing beyond the shared backward pass.
    Measured: mean Spearman .14 with contribution and regret .38 on 23 environments of LayerBench, where `position` has
    .20 and .18 (examples/RESULTS.md). It is reported, and has no part in the prediction.
    Known to fail: a large gradient says that the reward is steep, not how far one can go. On small models its rank
    correlation was between -.60 and .77, and it can pick the worst layer.
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        return Scores.of_samples(
            [
                [inner(gradient[layer], gradient[layer]) ** 0.5 for gradient in context.gradients]
                for layer in context.layers
            ]
        )
