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

import psutil
import torch

from autolayer.core.arms import Arm
from autolayer.core.errors import TrainingError
from autolayer.core.progress import processes_here
from autolayer.distributed.fsdp import is_sharded
from autolayer.rollouts.types import Rollouts
from autolayer.training import first_step
from autolayer.training.first_step import FirstStep
from autolayer.training.optimizer import GradientKeeper
from autolayer.training.train_arm import make_trainer, prepared, reference_of

if TYPE_CHECKING:
    from autolayer.training.workbench import Workbench

logger = logging.getLogger(__name__)


def share_first_step(bench: Workbench, scouts: Sequence[tuple[int, ...]], seed: int) -> bool:
    """Makes the shared pass, once, before a race begins.

    Args:
        bench: With the base weights in.
        scouts: Layers of every arm of the race's first rung.
        seed: Of these arms.

    Returns:
        Whether there is such a pass. If not, each arm makes its own: what a race plans with.
    """
    prompts_per_step = bench.settings.prompts_per_step
    layers = tuple(sorted({layer for each in scouts for layer in each}))
    arm = Arm(layers=layers, learning_rate=0.0, seed=seed)
    if len(scouts) < 2 or not bench.shares_first:
        return False
    if (found := first_step.find(bench, arm, prompts_per_step)) is not None:
        return bool(found.layers)
    if is_sharded(bench.model):  # all these layers would have to be whole at once
        return False
    size = 4 * sum(parameter.numel() for parameter in bench.parameters(layers).values())
    # On disk checkpoints come beside it, in memory every process adds its own up.
    memory = psutil.virtual_memory().available
    rooms = (("on disk", 2, bench.folder.free_bytes()), ("in memory", processes_here(), memory))
    for where, times, free in rooms:
        if times * size > free:
            logger.warning(
                "no room %s for the shared gradient, %d bytes: every arm makes its own first step.", where, size
            )
            return False
    started, sizes = time.perf_counter(), bench.passes.sizes

    def together() -> tuple[Rollouts, dict[str, torch.Tensor]]:
        arguments = (arm, prompts_per_step)
        bench.ranks.order("train", shared_gradient, *arguments, bench.passes.sizes)
        return bench.in_every_process(shared_gradient, *arguments)

    try:
        rollouts, gradient = bench.passes.within_memory(together)
    except TrainingError as error:  # the lowest layer asks for more memory than others do alone
        logger.warning("the first step is not shared: %s", error)
        bench.passes.sizes = sizes
        return False
    first_step.keep_gradient(bench.folder, arm, prompts_per_step, gradient)
    cost = replace(bench.update_cost(rollouts, layers), seconds=time.perf_counter() - started)
    first_step.keep(bench.folder, arm, prompts_per_step, FirstStep(rollouts=rollouts, layers=layers, cost=cost))
    return True


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
            reference = reference_of(bench, arm.layers, moved=False)
            trainer = make_trainer(bench, arm, rows, 1, keeper, seen.append, reference=reference)
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
