"""The shared batch: the prompts and completions that all probes look at, divided into folds as in cross-validation.

A direction is computed on all folds but one and judged on the fold left out. On the completions that it was computed
from, the direction of every layer would look good.
"""

from dataclasses import dataclass

import torch

from autolayer.core.errors import DataError
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.training.logprobs import ScoreBatch
from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold of the shared batch: B completions, in groups of one prompt each."""

    rollouts: Rollouts
    batch: ScoreBatch
    """The same completions as tensors, ready for a forward pass."""
    advantages_B: torch.Tensor
    """Unbiased group advantages, (r - mean) * G / (G - 1): their gradient is that of the expected reward."""

    @property
    def num_prompts(self) -> int:
        """Number of groups of completions."""
        return len(self.rollouts.rewards) // self.rollouts.group_size


def make_fold(bench: Workbench, rollouts: Rollouts) -> Fold:
    """Makes a fold of rollouts."""
    rewards_P_G = rollouts.rewards_P_G()
    scale = rollouts.group_size / (rollouts.group_size - 1)
    advantages_P_G = (rewards_P_G - rewards_P_G.mean(1, keepdim=True)) * scale
    return Fold(rollouts=rollouts, batch=bench.scorer.batch(rollouts), advantages_B=advantages_P_G.flatten())


def make_folds(bench: Workbench, rollouts: Rollouts, fold_prompts: int, num_folds: int, seed: int) -> list[Fold]:
    """Divides rollouts on the first prompts of the `probe` split into folds, and samples what is missing.

    The folds are of equal size, and no prompt is in two of them. Where the split has not enough prompts, they are
    smaller or fewer.
    """
    group_size = rollouts.group_size
    have, rows = len(rollouts.rewards) // group_size, bench.task.splits["probe"]
    num_folds = min(num_folds, len(rows))
    if num_folds < 2:
        raise DataError(
            f"the probe split has {len(rows)} row: give at least 2, since no direction is judged on itself."
        )
    fold_prompts = min(fold_prompts, len(rows) // num_folds)
    wanted = fold_prompts * num_folds
    if wanted > have:
        more = rows[have:wanted]
        seeds = [
            request_seed(seed, "probe", have + i // group_size, i % group_size) for i in range(len(more) * group_size)
        ]
        rollouts = Rollouts.joined([rollouts, bench.sample(more, seeds, group_size)], group_size)
    return [make_fold(bench, rollouts[start : start + fold_prompts]) for start in range(0, wanted, fold_prompts)]
