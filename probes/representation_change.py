"""Probe `representation_change`: how well a layer's step moves rewarded completions apart from unrewarded ones."""

import math

import numpy as np
import torch

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.step_response import StepResponse


class RepresentationChange(Probe):
    """Scores a layer by the share of the final hidden state's movement that goes with the reward.

    A step along the other folds' sign moves the state that the output head reads. How far it moves says only how
    fragile a layer is: early layers move everything. What counts is whether completions of one prompt move apart by
    their reward.

    Formula: with m_i the movement of completion i of a fold per unit of step, averaged over its tokens and centred
    within its group, and A_i its advantage,

        S_l = mean over i, j of different prompts of A_i A_j <m_i, m_j> / (mean ||m_i||^2 mean A_i^2),
        score_l = sign(S_l) sqrt|S_l|

    Pairs within a prompt are left out, since centring ties them together: so pure noise averages to 0, and the score
    depends neither on the step's size nor on the layer's scale. Shape (candidates,), between about -1 and 1.
    Source: our own form; ||weight change|| is known not to predict contribution (arXiv 2607.01232).
    Cost: nothing beyond the forward passes of `reach`.
    Measured: mean Spearman .06 with contribution and regret .23 on 21 environments of LayerBench, where `position` has
    .20 and .18 (examples/RESULTS.md). It is reported, and has no part in the prediction.
    Known to fail: few sequences (noise of about 1/sqrt(n), and the step response has at most 16 a fold), and layers
    whose movement is undone by later training.
    """

    def score(self, context: ProbeContext) -> Scores | None:
        """Returns the scores by the class's formula."""
        if context.plan.response_folds < 2:
            return None
        measured = {layer: self._samples(context, layer) for layer in context.responses}
        by_fold = zip(*measured.values(), strict=True)
        between = [np.interp(context.layers, list(measured), samples) for samples in by_fold]
        return Scores.of_samples(np.array(between).T.tolist())

    def _samples(self, context: ProbeContext, layer: int) -> list[float]:
        shares = [aligned_share(response) for response in context.responses[layer]]
        samples = [math.copysign(abs(share) ** 0.5, share) for share in shares]
        return samples + [0.0] * (context.plan.response_folds - len(samples))  # without a gradient, nothing moves


def aligned_share(response: StepResponse) -> float:
    """Returns S of the formula above for one fold; 0 where nothing moves or no reward differs within a prompt."""
    group_size = response.fold.rollouts.group_size
    movement_B_D = _centred(response.movement_B_D, group_size)
    advantages_B = _centred(response.fold.advantages_B.to(movement_B_D), group_size)
    count = len(advantages_B)
    by_prompt_P_D = (advantages_B[:, None] * movement_B_D).view(-1, group_size, movement_B_D.shape[1]).sum(1)
    crossed = by_prompt_P_D.sum(0).square().sum() - by_prompt_P_D.square().sum()
    scale = movement_B_D.square().sum(1).mean() * advantages_B.square().mean()
    num_pairs = count * (count - group_size)
    return float(crossed / num_pairs / scale) if num_pairs and scale > 0 else 0.0


def _centred(values: torch.Tensor, group_size: int) -> torch.Tensor:
    grouped = values.view(-1, group_size, *values.shape[1:])
    return (grouped - grouped.mean(1, keepdim=True)).view(values.shape)
