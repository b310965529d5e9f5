"""Trains an arm from its checkpoint to the next. Short runs, the final run and `measure` all use this function."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.layer_set import Layers
from autolayer.rollouts.sampler import in_order
from autolayer.rollouts.types import Rollouts
from autolayer.tasks.base import Row
from autolayer.training.grpo_trainer import EachStep
from autolayer.training.optimizer import MasterAdamW
from autolayer.training.trainer_setup import make_trainer, trainable
from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """An arm that was trained on, and what came of these steps alone."""

    arm: Arm
    """At its new checkpoint."""
    train_rewards_P: tuple[float, ...]
    """Mean reward of each training group, in order."""
    cost: Cost


def train_arm(
    bench: Workbench,
    arm: Arm,
    to_step: int,
    *,
    prompts_per_step: int | None = None,
    on_step: Callable[[float], None] | None = None,
) -> TrainedArm:
    """Trains an arm on from its checkpoint, and saves the next one. Call it on every rank.

    A training that is cut in two gives the same arm, bit for bit (on one machine).

    Args:
        bench: With the base weights in, before and afterwards.
        arm: What to train, from which step.
        to_step: Optimizer steps done when this returns.
        prompts_per_step: Of all ranks together; default: the run's. Bursts take fewer.
        on_step: Called with each step's mean training reward.

    Raises:
        TrainingError: Training diverges, or one sequence does not fit into memory.
    """
    assert to_step > arm.step, f"{arm} is not behind step {to_step}"
    done = 0

    def after_step(step: int, reward: float) -> None:
        nonlocal done
        if on_step is not None and step > done:  # out of memory, a training begins again
            done = step
            on_step(reward)

    return bench.micro_batching.within_memory(
        lambda: _train(bench, arm, to_step, prompts_per_step or bench.settings.prompts_per_step, after_step),
        passes_are_collective=True,  # TRL gathers its metrics in them
    )


def train_rows(bench: Workbench, seed: int, first_step: int, num_steps: int, prompts_per_step: int) -> list[Row]:
    """Returns the prompts of some steps: a new seeded order of the train split every epoch."""
    wanted = range(first_step * prompts_per_step, (first_step + num_steps) * prompts_per_step)
    return in_order(bench.task.splits["train"], seed, wanted)


def update_cost(bench: Workbench, rollouts: Rollouts, layers: Layers) -> Cost:
    """Returns the cost of the passes of one training step."""
    cost = bench.costs.train(rollouts.num_tokens, layers)
    if bench.settings.beta:
        cost += bench.costs.forward(rollouts.num_tokens, start=bench.scorer.shared_below(layers))
    return cost


def _train(
    bench: Workbench, arm: Arm, to_step: int, prompts_per_step: int, after_step: Callable[[int, float], None]
) -> TrainedArm:
    started = time.perf_counter()
    num_steps = to_step - arm.step
    rows = train_rows(bench, arm.seed, arm.step, num_steps, prompts_per_step)
    steps: list[Rollouts] = []
    with (
        bench.weights(arm.layers, bench.arm_weights(arm)),
        trainable(bench, arm.layers) as freeze,
        closing(_optimizer(bench, arm)) as optimizer,
        closing(make_trainer(bench, arm, rows, num_steps, optimizer, steps.append)) as trainer,
    ):

        def each_step() -> None:
            bench.mark_changed(optimizer.named)
            after_step(len(steps), statistics.fmean(steps[-1].rewards))

        trainer.add_callback(EachStep(each_step))
        try:
            trainer.train()
        except torch.OutOfMemoryError:  # what was done is lost, and paid for
            bench.account.charge(_cost(bench, steps, arm.layers), time.perf_counter() - started)
            raise
        # Groups whose rewards are all equal have no advantage: a zero gradient is then no broken freeze.
        freeze.expect_gradient = trainer.had_advantage
        bench.effective += trainer.effective
        seconds = time.perf_counter() - started
        cost = replace(_cost(bench, steps, arm.layers), seconds=seconds)
        passes = sum((update_cost(bench, rollouts, arm.layers) for rollouts in steps), Cost())
        bench.account.charge(cost, seconds)
        bench.account.time_training(passes.layer_tokens, seconds - trainer.sampling_seconds)
        rewards = [rollouts.rewards_P_G().mean(1).tolist() for rollouts in steps]
        saved = bench.checkpoints.save(arm, to_step, optimizer.tensors(), rewards=rewards, cost=cost)
    return TrainedArm(arm=saved, train_rewards_P=tuple(mean for step in rewards for mean in step), cost=cost)


def _optimizer(bench: Workbench, arm: Arm) -> MasterAdamW:
    """Returns the optimizer of an arm as its checkpoint has left it."""
    optimizer = MasterAdamW(bench.parameters(arm.layers), lr=arm.learning_rate, average=bench.process_group.average)
    if arm.checkpoint is not None:
        optimizer.load_tensors(bench.checkpoints.read(arm))
    return optimizer


def _cost(bench: Workbench, steps: Sequence[Rollouts], layers: Layers) -> Cost:
    return sum((bench.account.generation(each) + update_cost(bench, each, layers) for each in steps), Cost())
