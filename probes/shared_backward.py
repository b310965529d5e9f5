"""The one backward pass over the shared batch: every layer's gradient on each fold, and projections by completion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autolayer.probes.gradient import Gradient, streamed_gradient
from autolayer.probes.gradient_projection import GradientProjector
from autolayer.probes.shared_batch import Fold
from autolayer.training.workbench import Workbench

# B completions, D numbers of a projection (not the hidden width).


@dataclass(frozen=True, kw_only=True)
class FoldGradients:
    """The results of the backward pass over one fold."""

    gradient: Gradient
    """Gradient of the expected reward by each layer."""
    projector: GradientProjector
    """Random projections of each completion's own part of that gradient."""


@dataclass(frozen=True, kw_only=True)
class ProjectedGradients:
    """Gradients of log pi(completion) by one layer, randomly projected, of the completions that have an advantage."""

    rows_B_D: torch.Tensor
    """Shape (completions, projected dimension), in float64."""
    advantages_B: torch.Tensor
    prompt_B: torch.Tensor
    """Number of each completion's prompt in the shared batch."""


def shared_backward(bench: Workbench, folds: Sequence[Fold], layers: tuple[int, ...]) -> list[FoldGradients]:
    """Runs one forward and backward pass over every fold.

    Args:
        bench: Workbench with the base weights loaded.
        folds: The shared batch.
        layers: The candidate layers.

    Returns:
        One record per fold.
    """
    found = []
    for fold in folds:
        projector = GradientProjector(bench.model, layers)
        with projector.watching():
            gradient = streamed_gradient(bench, fold.batch, fold.advantages_B, layers)
        found.append(FoldGradients(gradient=gradient, projector=projector))
    return found


def projected_gradients(
    folds: Sequence[Fold], fold_gradients: Sequence[FoldGradients], layer: int
) -> ProjectedGradients:
    """Joins one layer's projections over all folds.

    The backward pass weighs each completion by its advantage, and dividing by that gives the completion's own
    gradient. Completions with an advantage of 0 are left out, because their gradient is not known.

    Args:
        folds: The shared batch.
        fold_gradients: The results of the backward pass over each fold.
        layer: A candidate layer.
    """
    rows, advantages, prompts, first_prompt = [], [], [], 0
    for fold, found in zip(folds, fold_gradients, strict=True):
        count, has = len(fold.advantages_B), fold.advantages_B != 0
        rows_B_D = found.projector.rows(layer).double()
        if not rows_B_D.numel():  # no gradient gets to this layer
            rows_B_D = torch.zeros(count, 1, dtype=torch.float64)
        advantages_B = fold.advantages_B[has].double()
        rows.append(rows_B_D[has] * (count / advantages_B)[:, None])
        advantages.append(advantages_B)
        prompts.append((torch.arange(count) // fold.rollouts.group_size + first_prompt)[has])
        first_prompt += fold.num_prompts
    return ProjectedGradients(rows_B_D=torch.cat(rows), advantages_B=torch.cat(advantages), prompt_B=torch.cat(prompts))
