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
from autolayer.models.train_only import Trainable, train_only
from autolayer.rollouts.types import Rollouts
from autolayer.tasks.base import Row
from autolayer.training import checkpoints
from autolayer.training.grpo_trainer import EachStep, LayerGRPOTrainer, own_randomness, own_settings, quiet_trainer
from autolayer.training.kl_reference import Reference
from autolayer.training.optimizer import MasterAdamW

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
    tell: Callable[[int, float], None] = lambda *_: None,
) -> Segment:
    """Trains an arm on from its checkpoint, in every process at once; the leading one saves the next one and pays.

    Args:
        bench: With the base weights in, before and afterwards.
        arm: What to train, from which step.
        to_step: Optimizer steps done when this returns.
        prompts_per_step: Of all processes together.
        tell: Called with the number of steps done in this segment, and the mean reward of the last one.
    """
    started = time.perf_counter()
    num_steps = to_step - arm.step
    assert num_steps > 0, f"{arm} is not behind step {to_step}"
    rows = bench.train_rows(arm.seed, arm.step, num_steps, prompts_per_step)
    seen: list[Rollouts] = []
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
            trainer = make_trainer(bench, arm, rows, num_steps, optimizer, seen.append)
            trainer.add_callback(EachStep(after_step))
            trainer.train()
            # Groups whose rewards are all equal have no advantage: a zero gradient is then no broken freeze.
            freeze.expect_gradient, sampling = trainer.had_advantage, trainer.sampling_seconds
            bench.effective += trainer.effective
        except torch.OutOfMemoryError:  # what was done is lost, and paid for
            bench.charge(bench.cost_of_steps(seen, arm.layers), time.perf_counter() - started)
            raise
        finally:
            optimizer.close()
            if trainer is not None:
                trainer.close()
        advanced = replace(arm, step=to_step)
        advanced = replace(advanced, checkpoint=checkpoints.name_of(advanced))
        groups = [rollouts.rewards_P_G().mean(1).tolist() for rollouts in seen]
        cost = replace(bench.cost_of_steps(seen, arm.layers), seconds=time.perf_counter() - started)
        if not bench.ranks.leads:  # files and bills are the leader's
            return Segment(arm=advanced, train_rewards_P=(), cost=cost)
        bench.spent += cost
        trained = sum((bench.update_cost(rollouts, arm.layers) for rollouts in seen), Cost())
        bench.time_training(trained.layer_tokens, cost.seconds - sampling)
        checkpoints.note(bench.folder.path, arm, groups, cost)
        checkpoints.write(bench.folder.path, advanced, optimizer.tensors(), before + cost)
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


def reference_of(bench: Workbench, layers: Layers) -> Reference | None:
    """Of the KL term, where there is one, while these layers are trained; in every process at once.

    Args:
        bench: With these layers whole.
        layers: What is trained.
    """
    if not bench.settings.beta:
        return None
    if is_sharded(bench.model):  # the leader may have tried before, alone
        bench.enters = led(bench.model, lambda: bench.enters)
    return Reference(bench.model, bench.parameters(layers), bench.base(layers), bench.shared_below(layers))


def make_trainer(
    bench: Workbench,
    arm: Arm,
    rows: Sequence[Row],
    num_steps: int,
    optimizer: MasterAdamW,
    on_rollouts: Callable[[Rollouts], None],
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
        reference=reference_of(bench, arm.layers),
        on_rollouts=on_rollouts,
        ranks=bench.ranks,
    )
