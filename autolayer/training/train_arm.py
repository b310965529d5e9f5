"""Trains an arm from one checkpoint to the next. Short runs, the final run and `measure` all use `train_arm`."""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache

import torch

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost, PassSize
from autolayer.core.errors import AutolayerError, EpisodeError, RewardError
from autolayer.core.layer_set import Layers
from autolayer.models.train_only import train_only
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks.base import Row
from autolayer.training.grpo_trainer import EachStep, LayerGRPOTrainer
from autolayer.training.optimizer import MasterAdamW
from autolayer.training.trainer_side_effects import trainer_side_effects_undone
from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """The result of one call of `train_arm`."""

    arm: Arm
    train_rewards_P: tuple[float, ...]
    """Mean reward of each training group of these steps, in order."""
    cost: Cost
    saving_seconds: float
    """Time that saving the checkpoint took."""


def train_arm(
    bench: Workbench,
    arm: Arm,
    to_step: int,
    *,
    on_step: Callable[[float], None] | None = None,
    seconds: float = math.inf,
) -> TrainedArm:
    """Trains an arm from its checkpoint up to step `to_step`, and saves a new checkpoint. Call it on every rank.

    Training in two calls gives the same arm as training in one, bit for bit (on one machine). The workbench holds the
    base weights before and after the call. `on_step` gets the mean training reward of each step. After `seconds`,
    training stops at the step that it has reached. If a reward or an environment fails, the steps before are saved.
    """
    assert to_step > arm.step, f"{arm} is already at or after step {to_step}"
    done = 0

    def after_step(step: int, reward: float) -> None:
        nonlocal done
        if on_step is not None and step > done:  # after running out of memory, steps are repeated
            done = step
            on_step(reward)

    return bench.micro_batching.retry_on_out_of_memory(
        lambda: _train(bench, arm, to_step, after_step, seconds),
        passes_need_all_ranks=True,  # TRL gathers metrics of all ranks in each pass
    )


def train_rows(bench: Workbench, seed: int, first_step: int, num_steps: int) -> list[Row]:
    """Returns the prompts of some steps; every epoch takes the train split in a new seeded order."""
    rows, prompts_per_step = bench.task.splits["train"], bench.config.prompts_per_step or 0

    @cache
    def order(epoch: int) -> list[int]:
        return random.Random(request_seed(seed, "order", epoch)).sample(range(len(rows)), len(rows))

    positions = range(first_step * prompts_per_step, (first_step + num_steps) * prompts_per_step)
    return [rows[order(position // len(rows))[position % len(rows)]] for position in positions]


def update_cost(bench: Workbench, steps: Sequence[Rollouts], layers: Layers) -> Cost:
    """Returns the cost of the training passes over the rollouts of some steps, the KL reference's included.

    They are billed as one process packs them: a prompt that two ranks compute costs nothing extra, because what a run
    may afford must not depend on the number of processes.
    """
    size = sum(map(bench.scorer.pass_size, steps), PassSize())
    policy = bench.costs.train(size, layers)
    return policy + bench.costs.forward(size, bench.scorer.shared_below(layers)) if bench.config.beta else policy


def _train(
    bench: Workbench,
    arm: Arm,
    to_step: int,
    after_step: Callable[[int, float], None],
    seconds: float,
) -> TrainedArm:
    started = time.perf_counter()
    num_steps = to_step - arm.step
    rows = train_rows(bench, arm.seed, arm.step, num_steps)
    steps: list[Rollouts] = []
    metrics: list[dict[str, float]] = []
    failure: AutolayerError | None = None
    with (
        bench.weights(arm.layers, bench.arm_weights(arm)),
        trainer_side_effects_undone(bench.model),
        train_only(bench.model, arm.layers, quiet=True) as trainable,
        bench.micro_batching.checkpointed(arm.layers),
        closing(_optimizer(bench, arm)) as optimizer,
        closing(
            LayerGRPOTrainer(
                bench=bench, arm=arm, rows=rows, num_steps=num_steps, optimizer=optimizer, on_rollouts=steps.append
            )
        ) as trainer,
    ):

        def each_step() -> bool:
            bench.engine.mark_changed(optimizer.named)
            measured = {**trainer.take_metrics("kl", "entropy"), "update_size": optimizer.update_size()}
            metrics.append({**steps[-1].logged, **_lengths(steps[-1]), **measured})
            after_step(len(steps), statistics.fmean(steps[-1].rewards))
            return bench.process_group.on_rank_0(lambda: time.perf_counter() - started > seconds)

        trainer.add_callback(EachStep(each_step))
        try:
            trainer.train()
        except torch.OutOfMemoryError:  # these steps are lost, but they have cost something
            sampled = sum(map(bench.account.generation, steps), Cost())
            bench.account.charge(sampled + update_cost(bench, steps, arm.layers), time.perf_counter() - started)
            raise
        except (RewardError, EpisodeError) as error:
            if not steps:
                raise
            failure = error
        # If all rewards of a group are equal, its advantages are 0, and a zero gradient is no error.
        trainable.expect_gradient = trainer.had_advantage
        bench.effective += trainer.effective
        taken = time.perf_counter() - started
        passes = update_cost(bench, steps, arm.layers)
        cost = replace(sum(map(bench.account.generation, steps), passes), seconds=taken)
        bench.account.charge(cost, taken)
        bench.account.time_training(passes.layer_tokens, taken - trainer.sampling_seconds)
        rewards = [rollouts.rewards_P_G().mean(1).tolist() for rollouts in steps]
        reached = arm.step + len(steps)
        bench.process_group.on_rank_0(lambda: bench.log.keep_completions(arm, steps))
        saved = bench.checkpoints.save(arm, reached, optimizer.tensors(), rewards=rewards, cost=cost, metrics=metrics)
    bench.process_group.on_rank_0(lambda: bench.log.track(saved, bench.checkpoints))
    if failure is not None:
        raise failure
    return TrainedArm(
        arm=saved,
        train_rewards_P=tuple(mean for step in rewards for mean in step),
        cost=cost,
        saving_seconds=time.perf_counter() - started - taken,
    )


def _lengths(rollouts: Rollouts) -> dict[str, float]:
    """Returns the mean number of generated tokens, and the share of truncated completions, under TRL's names."""
    return {
        "completions/mean_length": rollouts.num_generated / len(rollouts.rewards),
        "completions/clipped_ratio": 1 - statistics.fmean(rollouts.finished),
    }


def _optimizer(bench: Workbench, arm: Arm) -> MasterAdamW:
    optimizer = MasterAdamW(
        bench.parameters(arm.layers),
        lr=arm.learning_rate,
        average=bench.process_group.average,
        as_stored=bench.loaded.as_stored,
    )
    if arm.checkpoint is not None:
        optimizer.load_tensors(bench.checkpoints.read(arm))
    return optimizer
