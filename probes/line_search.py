"""How much reward the best step along the shared gradient would bring, without new rollouts."""

from __future__ import annotations

import torch

from autolayer.core.budget import LINE_SIZES
from autolayer.distributed.fsdp import whole
from autolayer.models.fp32 import fp32_layers
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.shared_batch import Fold
from autolayer.probes.step_response import stepped
from autolayer.training.logprobs import scoring

DEVIATIONS = (0.1, 0.25, 0.5, 1.0)
"""Step sizes, as the deviation of the sequence log-ratio (nats) each should make; beyond 1 reweighting is noise."""
assert len(DEVIATIONS) == LINE_SIZES


class LineSearch(Probe):
    """Reward gained at the best of four sizes of a sign step, estimated by reweighting each prompt's group.

    Formula: R(e) = mean over groups of sum_i softmax_i(log pi(y_i; w + e d) - log pi(y_i; w)) r_i - mean_i r_i, with
    d the direction of the other folds. The size is chosen on the even groups and its gain read on the
    odd ones, and the other way round, so the maximum over sizes is not paid for with bias.
    Shape (candidates,), in reward. Cost: four forwards of some prompts per layer, from the layer up. Source:
    self-normalised importance sampling; as measured on six small environments: Spearman .3 to 1.0 after averaging
    several batches.
    Known to fail: a true gain of .02 reads .016 +- .015 with 64 x 8 completions; long completions are worse, and a
    gain that comes only after several steps is not seen.
    """

    def score(self, context: ProbeContext) -> Scores | None:
        prompts = min(context.plan.line_search_prompts, context.folds[0].num_prompts)
        if prompts < 2:  # one to choose the size on, one to judge it by
            return None
        return Scores.of_samples([self._samples(context, layer) for layer in context.layers])

    def _samples(self, context: ProbeContext, layer: int) -> list[float]:
        """The gain on the even groups at the size that suits the odd ones, and the other way round."""
        typical = context.deviation(layer)
        if typical == 0:
            return [0.0, 0.0]
        sizes = [deviation / typical for deviation in DEVIATIONS]
        gains_S_P = reweighted_gains(context, layer, context.direction(layer, without=0), sizes)
        even_S, odd_S = gains_S_P[:, 0::2].mean(1), gains_S_P[:, 1::2].mean(1)
        return [float(odd_S[even_S.argmax()]), float(even_S[odd_S.argmax()])]


def reweighted_gains(
    context: ProbeContext, layer: int, direction: dict[str, torch.Tensor], sizes: list[float]
) -> torch.Tensor:
    """Estimated gain in expected reward per step size and prompt of the first fold, shape (sizes, P)."""
    model, whole_group = context.bench.model, context.folds[0].rollouts.group_size
    gains = []
    with scoring(model, context.bench.engine.temperature), torch.no_grad():
        fold, boundary = context.steps.subset(layer, 0, context.plan.line_search_prompts, whole_group)
        with whole(model, (layer,)), fp32_layers(model, (layer,)):
            before_B = context.steps.log_probs(boundary)
            for size in sizes:
                with stepped(model, direction, size):
                    after_B = context.steps.log_probs(boundary)
                gains.append(group_gain(after_B - before_B, fold))
    return torch.stack(gains)


def group_gain(log_ratio_B: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Reweighted mean reward of each group minus its plain mean, shape (P,)."""
    rewards_P_G = fold.rollouts.rewards_P_G().to(log_ratio_B)
    weights_P_G = log_ratio_B.view_as(rewards_P_G).softmax(1)
    return (weights_P_G * rewards_P_G).sum(1) - rewards_P_G.mean(1)
