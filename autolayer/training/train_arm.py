"""One segment of an arm's training: from a checkpoint to the next, and what it cost."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.layer_set import Layers
from autolayer.distributed.fsdp import is_sharded, led
from autolayer.models.layers import Trainable, train_only
from autolayer.rollouts.types import Rollouts
from autolayer.tasks.base import Row
from autolayer.training import checkpoints, first_step
from autolayer.training.first_step import FirstStep
from autolayer.training.grpo_trainer import EachStep, LayerGRPOTrainer, own_randomness, own_settings, quiet_trainer
from autolayer.training.kl_reference import Reference
from autolayer.training.optimizer import GradientKeeper, MasterAdamW

if TYPE_CHECKING:
    from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What a training segment left behind."""

    arm: Arm
    train_rewards_P: tuple[float, ...]
    """Mean reward of each training group of the segment, in order."""
    cost: Cost
    """Of this segment alone."""


def train_segment(
    bench: Workbench,
    arm: Arm,
    to_step: int,
    prompts_per_step: int,
    first: FirstStep | None,
    tell: Callable[[int, float], None] = lambda *_: None,
) -> Segment:
    """Trains an arm on from its checkpoint, in every process at once; the leading one saves the next one and pays.

    Args:
        bench: With the base weights in, before and afterwards.
        arm: What to train, from which step.
        to_step: Optimizer steps done when this returns.
        prompts_per_step: Of all processes together.
        first: What `first_step.find` has found.
        tell: Called with the number of steps done in this segment, and the mean reward of the last one.
    """
    started = time.perf_counter()
    num_steps = to_step - arm.step
    assert num_steps > 0, f"{arm} is not behind step {to_step}"
    rows = bench.train_rows(arm.seed, arm.step, num_steps, prompts_per_step)
    seen: list[Rollouts] = []
    given = 0
    """Steps made by a gradient that was there already."""
    sampling = 0.0
    with bench.weights(arm.layers, bench.arm_weights(arm)), prepared(bench, arm.layers) as freeze:
        parameters = bench.parameters(arm.layers)
        optimizer = MasterAdamW(
            parameters,
            lr=arm.learning_rate,
            boosts=dict.fromkeys(bench.parameters(arm.boosted), arm.boost) if arm.boosted else {},
            average=bench.ranks.average,
        )
        trainer = None

        def after_step() -> None:
            bench.changed(parameters)
            tell(len(seen), statistics.fmean(seen[-1].rewards))

        try:
            before = Cost()
            if arm.checkpoint is not None:
                tensors, before = checkpoints.read(bench.folder.path, arm)
                optimizer.load_tensors(tensors)
            if first is not None and first.kept:
                optimizer.step_by(first_step.gradient(bench, arm, prompts_per_step, first))
                seen.append(first.rollouts)
                given = 1
                after_step()
            if num_steps > given:
                trainer = make_trainer(
                    bench,
                    replace(arm, step=arm.step + given),
                    rows[given * prompts_per_step :],
                    num_steps - given,
                    optimizer,
                    seen.append,
                    reference=reference_of(bench, arm.layers),
                    first_rollouts=first.rollouts if first is not None and not given else None,
                )
                trainer.add_callback(EachStep(after_step))
                trainer.train()
                # Groups whose rewards are all equal have no advantage: a zero gradient is then no broken freeze.
                freeze.expect_gradient, sampling = trainer.had_advantage, trainer.sampling_seconds
                bench.effective += trainer.effective
        except torch.OutOfMemoryError:  # what was done is lost, and paid for
            bench.charge(bench.cost_of_steps(seen[given:], arm.layers), time.perf_counter() - started)
            raise
        finally:
            optimizer.close()
            if trainer is not None:
                trainer.close()
        advanced = replace(arm, step=to_step)
        advanced = replace(advanced, checkpoint=checkpoints.name_of(advanced))
        groups = [rollouts.rewards_P_G().mean(1).tolist() for rollouts in seen]
        alone = replace(bench.cost_of_steps(seen, arm.layers), seconds=time.perf_counter() - started)
        if not bench.ranks.leads:  # files and bills are the leader's
            return Segment(arm=advanced, train_rewards_P=(), cost=alone)
        cost = alone
        if arm.step == 0 and bench.shares_first:
            first = first or FirstStep(rollouts=seen[0])
            if given:
                cost -= bench.update_cost(first.rollouts, arm.layers)
            if first.payer is None:
                first = replace(first, payer=arm.key)
                first_step.keep(bench.folder, arm, prompts_per_step, first)
            if first.payer == arm.key:
                cost += first.cost
            else:
                cost -= bench.generation_cost(first.rollouts)
        bench.spent += cost
        trained = sum((bench.update_cost(rollouts, arm.layers) for rollouts in seen[given:]), Cost())
        bench.time_training(trained.layer_tokens, alone.seconds - sampling)
        checkpoints.note(bench.folder.path, arm, groups, cost)
        checkpoints.write(bench.folder.path, advanced, optimizer.tensors(), before + alone)
    return Segment(arm=advanced, train_rewards_P=tuple(mean for step in groups for mean in step), cost=cost)


@contextlib.contextmanager
def prepared(bench: Workbench, layers: Layers) -> Iterator[Trainable]:
    """A model that TRL's trainer may have, with some layers trainable; outside, all of it is as it was."""
    with (
        own_randomness(),
        own_settings(bench.model),
        quiet_trainer(),
        train_only(bench.model, layers, quiet=True) as freeze,
        bench.keeping_little(layers),
    ):
        yield freeze


def reference_of(bench: Workbench, layers: Layers, *, moved: bool = True) -> Reference | None:
    """Of the KL term, where there is one, while these layers are trained; in every process at once.

    Args:
        bench: With these layers whole.
        layers: What is trained.
        moved: False where the policy stays the base itself.
    """
    if not bench.settings.beta:
        return None
    if is_sharded(bench.model):  # the leader may have tried before, alone
        bench.enters = led(bench.model, lambda: bench.enters)
    parameters, base = (bench.parameters(layers), bench.base(layers)) if moved else ({}, {})
    return Reference(bench.model, parameters, base, bench.shared_below(layers))


def make_trainer(
    bench: Workbench,
    arm: Arm,
    rows: Sequence[Row],
    num_steps: int,
    optimizer: MasterAdamW | GradientKeeper,
    on_rollouts: Callable[[Rollouts], None],
    *,
    reference: Reference | None,
    first_rollouts: Rollouts | None = None,
) -> LayerGRPOTrainer:
    """The trainer of some steps of an arm, by the run's settings."""
    return LayerGRPOTrainer(
        model=bench.model,
        tokenizer=bench.tokenizer,
        task=bench.task,
        rows=rows,
        arm=arm,
        num_steps=num_steps,
        group_size=bench.settings.group_size,
        algorithm=bench.settings.algorithm,
        gigpo=bench.settings.gigpo,
        beta=bench.settings.beta,
        engine=bench.engine,
        optimizer=optimizer,
        micro_batch=bench.passes.sequences(bench.longest),
        reference=reference,
        first_rollouts=first_rollouts,
        on_rollouts=on_rollouts,
        ranks=bench.ranks,
    )
