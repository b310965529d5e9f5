"""Trains an arm over several checkpoints, so that an interruption loses only the steps since the last one."""

import math
import time
from collections.abc import Callable, Iterator

from autolayer.core.arms import Arm
from autolayer.training.train_arm import TrainedArm, train_arm
from autolayer.training.workbench import Workbench

CHECKPOINT_STEPS, CHECKPOINT_SECONDS = 25, 60.0
"""Steps and seconds after which a checkpoint is saved, whichever comes first."""
SAVING = 0.05
"""Share of the time that may be spent on saving; where a checkpoint takes long, fewer are saved."""


def train_to_step(
    bench: Workbench,
    arm: Arm,
    to_step: int,
    *,
    on_step: Callable[[float], None] | None = None,
    deadline: float = math.inf,
) -> Iterator[TrainedArm]:
    """Trains an arm from its checkpoint to a step, and yields it at each checkpoint. Call it on every rank.

    `on_step` gets the mean training reward of each step. After `deadline`, a value of `time.monotonic()`, no training
    to another checkpoint starts.
    """
    on_rank_0 = bench.process_group.on_rank_0
    seconds = CHECKPOINT_SECONDS
    while arm.step < to_step and on_rank_0(lambda: time.monotonic() < deadline):
        stop = min(to_step, (arm.step // CHECKPOINT_STEPS + 1) * CHECKPOINT_STEPS)
        trained = train_arm(bench, arm, stop, on_step=on_step, seconds=seconds)
        arm, seconds = trained.arm, max(CHECKPOINT_SECONDS, trained.saving_seconds / SAVING)
        yield trained
