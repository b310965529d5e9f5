"""Probe `natural_gain`: reward gained for each unit by which the policy moves, along the natural gradient."""

import torch

from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.shared_backward import ProjectedGradients

NUM_PARTS = 6
"""Parts of the prompts. A direction is computed on all parts but one, and judged on that one."""
DAMPING = 1.0
"""Added to the Fisher matrix's eigenvalues, in units of their mean, because the estimated curvature is noisy."""


class NaturalGain(Probe):
    """Scores a layer by the first-order gain of a natural-gradient step, per square root of its KL divergence.

    Training makes many steps and ends up far from the direction of its first gradient. The natural gradient weighs each
    direction by how much it changes the policy, and prompts that took no part in choosing it show whether it carries
    over.

    Formula: with phi_i the randomly projected gradient of log pi(y_i) by the layer, A_i its advantage, F = mean
    phi_i phi_i^T and g = mean A_i phi_i over all prompts but one part's, d = (F + damping)^-1 g:

        score_l = mean over parts of <d, g_part> / sqrt(mean over the part of <d, phi_i>^2)

    Shape (candidates,), in reward per nat of deviation.
    Source: the natural gradient (S. Amari 1998), with projections as in LoGra (arXiv 2405.13954).
    Cost: nothing beyond the shared backward pass.
    Measured: mean Spearman .17 with contribution and regret .19 on 23 environments of LayerBench, where `position` has
    .20 and .18 (examples/RESULTS.md). It has a part in the prediction.
    Known to fail: fewer than some hundred completions; gains that need several layers of features to be built first.
    """

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        return Scores.of_samples([natural_gains(context.projected_gradients(layer)) for layer in context.layers])


def natural_gains(projected: ProjectedGradients, damping: float = DAMPING) -> list[float]:
    """Returns one term of `NaturalGain`'s formula for each part, or zeros for a layer that no gradient reaches.

    Args:
        projected: Projected gradients of the completions by one layer.
        damping: As `DAMPING`.
    """
    rows_B_D, advantages_B, part_B = projected.rows_B_D, projected.advantages_B, projected.prompt_B % NUM_PARTS
    gains = []
    for part in range(NUM_PARTS):
        inside = part_B == part
        if not bool(inside.any()) or not bool((~inside).any()):
            continue
        direction_D = natural_direction(rows_B_D[~inside], advantages_B[~inside], damping)
        along_B = rows_B_D[inside] @ direction_D
        deviation = float(along_B.square().mean().sqrt())
        gains.append(float((along_B * advantages_B[inside]).mean()) / deviation if deviation > 0 else 0.0)
    return gains if len(gains) > 1 else [0.0, 0.0]


def natural_direction(rows_B_D: torch.Tensor, advantages_B: torch.Tensor, damping: float) -> torch.Tensor:
    """Returns (F + damping * mean eigenvalue)^-1 g, (D,), computed by the smaller of the two Gram matrices.

    Args:
        rows_B_D: Projected gradients phi, shape (completions, projected dimension).
        advantages_B: Advantage of each completion, shape (completions,).
        damping: As `DAMPING`.
    """
    count, width = rows_B_D.shape
    added = damping * float(rows_B_D.square().sum()) / count / max(1, min(count, width))
    if added <= 0:
        return torch.zeros(width, dtype=rows_B_D.dtype)
    if width <= count:
        fisher_D_D = rows_B_D.T @ rows_B_D / count
        fisher_D_D.diagonal().add_(added)
        return torch.linalg.solve(fisher_D_D, rows_B_D.T @ advantages_B / count)
    gram_B_B = rows_B_D @ rows_B_D.T / count
    gram_B_B.diagonal().add_(added)
    return rows_B_D.T @ torch.linalg.solve(gram_B_B, advantages_B) / count
