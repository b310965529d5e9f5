"""The pass that the arms of a race's first rung share: the first GRPO gradient of all their layers at once.

Each of these arms would run the same rollouts through the same weights: the forward passes are equal, and so are the
backward passes as far as they go together. So TRL's trainer makes one step with all the layers trainable, and with an
optimizer that keeps the gradient instead of stepping. It is the very gradient that each arm would have found alone:
what else is trainable changes no number of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from autolayer import first_step
from autolayer.arms import Arm
from autolayer.errors import TrainingError
from autolayer.first_step import FirstStep
from autolayer.optimizer import GradientKeeper
from autolayer.rollouts import Rollouts
from autolayer.segment import make_trainer, prepared
from autolayer.shards import is_sharded

if TYPE_CHECKING:
    from autolayer.workbench import Workbench

logger = logging.getLogger(__name__)


def share_first_step(bench: Workbench, arm: Arm, scouts: Sequence[tuple[tuple[int, ...], int]]) -> None:
    """Makes the shared pass before the first arm that needs it; nothing where it is made, or there is nothing to share.

    Args:
        bench: With the base weights in.
        arm: About to be trained.
        scouts: Layers and seed of every arm of the race's first rung.
    """
    prompts_per_step = bench.settings.prompts_per_step
    sets = [layers for layers, seed in scouts if seed == arm.seed]
    shared = arm.step == 0 and bench.shares_first and len(sets) > 1
    shared &= not is_sharded(bench.model)  # where all these layers would have to be whole at once
    if not shared or first_step.find(bench, arm, prompts_per_step) is not None:
        return
    layers = tuple(sorted({layer for each in sets for layer in each}))
    size = 4 * sum(parameter.numel() for parameter in bench.parameters(layers).values())
    if size > bench.folder.free_bytes():
        logger.warning("no room on disk for the shared gradient, %d bytes: every arm makes its own first step.", size)
        return
    started = time.perf_counter()

    def together() -> tuple[Rollouts, dict[str, torch.Tensor]]:
        arguments = (replace(arm, layers=layers), prompts_per_step)
        bench.ranks.order("train", shared_gradient, *arguments, bench.passes.sizes)
        return bench.in_every_process(shared_gradient, *arguments)

    try:
        rollouts, gradient = bench.passes.within_memory(together)
    except TrainingError as error:  # the lowest layer asks for more memory than others do alone
        logger.warning("the first step is not shared: %s", error)
        return
    first_step.keep_gradient(bench.folder, arm, prompts_per_step, gradient)
    cost = replace(bench.update_cost(rollouts, layers), seconds=time.perf_counter() - started)
    first_step.keep(bench.folder, arm, prompts_per_step, FirstStep(rollouts=rollouts, layers=layers, cost=cost))


def shared_gradient(bench: Workbench, arm: Arm, prompts_per_step: int) -> tuple[Rollouts, dict[str, torch.Tensor]]:
    """The rollouts of an arm's first step, and the gradient it would be made by; in every process at once.

    Args:
        bench: With the base weights in, which stay there.
        arm: With the layers of all arms that are to share the step.
        prompts_per_step: Of all processes together.
    """
    started = time.perf_counter()
    seen: list[Rollouts] = []
    with prepared(bench, arm.layers) as freeze:
        keeper = GradientKeeper(bench.parameters(arm.layers), average=bench.ranks.average)
        trainer = None
        try:
            rows = bench.train_rows(arm.seed, 0, 1, prompts_per_step)
            trainer = make_trainer(bench, arm, rows, 1, keeper, seen.append)
            trainer.train()
            freeze.expect_gradient, sampling = trainer.had_advantage, trainer.sampling_seconds
            bench.effective += trainer.effective
        except torch.OutOfMemoryError:  # what was done is lost, and paid for
            bench.charge(bench.cost_of_steps(seen, arm.layers), time.perf_counter() - started)
            raise
        finally:
            keeper.close()
            if trainer is not None:
                trainer.close()
    seconds = time.perf_counter() - started - sampling
    bench.time_training(bench.update_cost(seen[0], arm.layers).layer_tokens, seconds)
    return seen[0], keeper.gradients
