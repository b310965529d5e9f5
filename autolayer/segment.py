"""One segment of an arm's training: from a checkpoint to the next, and what it cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from autolayer import checkpoints
from autolayer.arms import Arm
from autolayer.costs import Cost
from autolayer.layers import train_only
from autolayer.optimizer import MasterAdamW
from autolayer.rollouts import Rollouts
from autolayer.runs import FIRST
from autolayer.trainer import EachStep, LayerGRPOTrainer, own_randomness, own_settings, quiet_trainer

if TYPE_CHECKING:
    from autolayer.workbench import Workbench


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
    first: dict[str, Any] | None,
    tell: Callable[[int, float], None],
) -> Segment:
    """Trains an arm on from its checkpoint, in every process at once; the leading one saves the next one and pays.

    Args:
        bench: With the base weights in, before and afterwards.
        arm: What to train, from which step.
        to_step: Optimizer steps done when this returns.
        prompts_per_step: Of all processes together.
        first: What `first_rollouts` has found.
        tell: Called with the number of steps done in this segment, and the mean reward of the last one.
    """
    started = time.perf_counter()
    num_steps = to_step - arm.step
    assert num_steps > 0, f"{arm} is not behind step {to_step}"
    rows = bench.train_rows(arm.seed, arm.step, num_steps, prompts_per_step)
    seen: list[Rollouts] = []
    with (
        bench.weights(arm.layers, bench.arm_weights(arm)),
        own_randomness(),
        own_settings(bench.model),
        quiet_trainer(),
        train_only(bench.model, arm.layers, quiet=True) as freeze,
        bench.keeping_little(arm.layers),
    ):
        parameters = bench.parameters(arm.layers)
        optimizer = MasterAdamW(
            parameters,
            lr=arm.learning_rate,
            boosts=dict.fromkeys(bench.parameters(arm.boosted), arm.boost) if arm.boosted else {},
            average=bench.ranks.average,
        )
        trainer = None
        try:
            before = Cost()
            if arm.checkpoint is not None:
                tensors, before = checkpoints.read(bench.folder.path, arm)
                optimizer.load_tensors(tensors)
            trainer = LayerGRPOTrainer(
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
                reference=bench.reference(arm.layers) if bench.settings.beta else None,
                first_rollouts=Rollouts.from_dict(first["rollouts"]) if first else None,
                on_rollouts=seen.append,
                ranks=bench.ranks,
            )

            def after_step() -> None:
                bench.changed(parameters)
                tell(len(seen), statistics.fmean(seen[-1].rewards))

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
        alone = replace(bench.cost_of_steps(seen, arm.layers), seconds=time.perf_counter() - started)
        if not bench.ranks.leads:  # files and bills are the leader's
            return Segment(arm=advanced, train_rewards_P=(), cost=alone)
        cost = alone
        if arm.step == 0 and first is None and bench.shares_first:
            known, sampled = bench.folder.read(FIRST) or {}, {"payer": arm.key, "rollouts": asdict(seen[0])}
            bench.folder.write(FIRST, {**known, _place(arm, prompts_per_step): sampled}, indent=None)
        elif first is not None and first["payer"] != arm.key:
            cost -= bench.generation_cost(seen[0])
        bench.spent += cost
        sampled = sum((bench.generation_cost(rollouts) for rollouts in seen), Cost())
        bench.time_training((alone - sampled).layer_tokens, alone.seconds - sampling)
        checkpoints.note(bench.folder.path, arm, groups, cost)
        checkpoints.write(bench.folder.path, advanced, optimizer.tensors(), before + alone)
    return Segment(arm=advanced, train_rewards_P=tuple(mean for step in groups for mean in step), cost=cost)


def first_rollouts(bench: Workbench, arm: Arm, prompts_per_step: int) -> dict[str, Any] | None:
    """An arm's rollouts of step 0, where another one of its seed has sampled them, and the arm that pays for them.

    On disk, since what an arm costs must not depend on where a run was interrupted. Several workers share none: what
    they cost would depend on how many they are.
    """
    if arm.step > 0 or not bench.shares_first:
        return None
    return (bench.folder.read(FIRST) or {}).get(_place(arm, prompts_per_step))


def _place(arm: Arm, prompts_per_step: int) -> str:
    return f"{arm.seed}/{prompts_per_step}"
