"""Probes `reach` and `trusted_gain`: how far a layer can go, and the gain that a small step promises until there."""

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
    Cost: some forward passes of some prompts per layer and fold, from the layer up.
    Measured: mean Spearman .35 with contribution and regret .15 on 23 environments of LayerBench, where `position` has
    .20 and .18; ten prompts rank layers as well as sixty (examples/RESULTS.md).
    Known to fail: it says how far a layer can go, not whether that is worth anything.
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        return reach_scores([context.reaches(layer) for layer in context.layers])


class TrustedGain(Probe):
    """Scores a layer by the reward that the shared direction promises up to a fixed distance from the base.

    The gain of a small step, per square root of the KL divergence that it causes, sees only the first step. Training
    goes much further, and there layers differ by their `reach`. The gain is noisy where prompts are few, so it is
    shrunk towards the mean (empirical Bayes); the reach hardly is. Where the gain is all noise, this ranks as the reach
    does.

    Formula: with d = sign(sum of g over the other folds), g_k the gradient on fold k and e a small step,

        a_l = mean_k <d, g_k> / [sd_i(log pi(y_i; w + e d) - log pi(y_i; w)) / e],
        score_l = (m + r (a_l - mean a)) * reach_l,    m = max(mean a, error of a)

    where r is the reliability of a over the layers and reach_l the score of `reach`. Shape (candidates,), in reward per
    nat of deviation.
    Source: natural-gradient reasoning (arXiv 1503.05671) and trust regions (arXiv 1502.05477). Distance is measured on
    the base's own completions, so no importance weights come into it.
    Cost: that of `reach`.
    Measured: mean Spearman .36 with contribution and regret .13 on 23 environments of LayerBench, where `position` has
    .20 and .18; the best single probe (examples/RESULTS.md). The prediction is made from it.
    Known to fail: with few prompts it can rank a layer high that moves far without gaining.
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        gain = Scores.of_samples([context.gains_per_kl[layer] for layer in context.layers])
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


def reach_scores(reaches_L: Sequence[Sequence[float]]) -> Scores:
    """Returns the geometric mean of one or more samples of each candidate, or 0 if one of them is 0.

    The relative error is taken to be the same for every layer, since each has few samples.
    """
    alive_L = np.array([min(reaches) > 0 for reaches in reaches_L])
    logs_L = [np.log(np.maximum(reaches, 1e-9)) for reaches in reaches_L]
    scores_L = np.where(alive_L, np.exp([np.mean(logs) for logs in logs_L]), 0.0)
    several = [logs for logs, alive in zip(logs_L, alive_L, strict=True) if alive and len(logs) > 1]
    # A single sample does not tell its error, which is then taken to be as large as the value.
    relative = float(np.mean([np.var(logs, ddof=1) / len(logs) for logs in several])) ** 0.5 if several else 1.0
    return Scores(scores_L=scores_L, errors_L=scores_L * relative)
