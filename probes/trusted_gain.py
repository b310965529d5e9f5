"""Probe `trusted_gain`: gain per unit of policy movement, times how far the layer can be moved."""

import numpy as np

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.reach import reach_scores


class TrustedGain(Probe):
    """Scores a layer by the reward that the shared direction promises up to a fixed distance from the base.

    `gain_per_kl` measures the policy's movement by the response to a very small step. Training goes much further, and
    there layers differ by their `reach`. The gain is noisy where prompts are few, so it is shrunk towards the mean
    (empirical Bayes); the reach hardly is. Where the gain is all noise, this ranks as the reach does.

    Formula: with a_l the score of `gain_per_kl`, r its reliability over the layers and reach_l the score of `reach`,

        score_l = (m + r (a_l - mean a)) * reach_l,    m = max(mean a, error of a)

    Shape (candidates,), in reward per nat of deviation.
    Source: our own; trust regions as in arXiv 1502.05477. Distance is measured on the base's own completions, so no
    importance weights come into it.
    Cost: that of `gain_per_kl` and `reach`, measured once for all three.
    Measured: mean Spearman .36 with contribution and regret .13 on 23 environments of LayerBench, where `position` has
    .20 and .18; the best single probe (examples/RESULTS.md). It has the largest part in the prediction.
    Known to fail: where a layer can go far and gains nothing by it, as long as prompts are too few to tell.
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        gain = Scores.of_samples([context.gains_per_kl(layer) for layer in context.layers])
        reach = reach_scores([context.reaches(layer) for layer in context.layers])
        assert gain.errors_L is not None and reach.errors_L is not None
        alive = reach.scores_L > 0  # the others gain nothing, whatever the noise
        if not alive.any():
            return gain
        certain = Scores(scores_L=gain.scores_L[alive], errors_L=gain.errors_L[alive]).reliability
        mean = gain.scores_L[alive].mean()
        least = float(np.square(gain.errors_L[alive]).mean()) ** 0.5
        shrunk_L = max(mean, least) + certain * (gain.scores_L - mean)
        errors_L = np.hypot(certain * gain.errors_L * reach.scores_L, shrunk_L * reach.errors_L)
        return Scores(scores_L=shrunk_L * reach.scores_L, errors_L=errors_L)
