"""What a layer can gain before it has moved the policy too far: gain per root KL times reach."""

from __future__ import annotations

import numpy as np

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.reach import reach_scores


class TrustedGain(Probe):
    """Reward that the shared direction promises up to the step at which the policy has moved by `TARGET_DISTANCE`.

    `gain_per_kl` measures distance by the response to a very small step. Training goes much further, and there layers
    differ: what an early layer changes is amplified by all that follow, so the policy runs away from the base, while a
    late layer's effect flattens out.

    Formula: with a_l the score of `gain_per_kl`, r its reliability over the layers and reach_l
    the score of `reach`:

        score_l = (m + r (a_l - mean a)) * reach_l,    m = max(mean a, error of a)

    The gain is noisy where prompts are few and is shrunk accordingly (empirical Bayes); the reach hardly is. Where the
    gain is all noise, r = 0, this ranks as the reach does.
    Shape (candidates,), in reward per nat of deviation. Cost: three forwards of some prompts for each layer beyond
    those of `gain_per_kl`. Source: our own; trust regions as in arXiv 1502.05477. Distance is measured on the base's
    own completions, so no importance weights come into it.
    Known to fail: where a layer can go far and gains nothing by it, as long as prompts are too few to tell.
    """

    def score(self, context: ProbeContext) -> Scores:
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
