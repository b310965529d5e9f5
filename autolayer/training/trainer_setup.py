"""Setting up the trainer: a model that it may have, the KL reference, and the run's settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from autolayer.core.arms import Arm
from autolayer.core.layer_set import Layers
from autolayer.models.train_only import Trainable, train_only
from autolayer.rollouts.types import Rollouts
from autolayer.tasks.base import Row
from autolayer.training.grpo_trainer import LayerGRPOTrainer
from autolayer.training.kl_reference import KLReference
from autolayer.training.optimizer import MasterAdamW
from autolayer.training.trainer_side_effects import undone
from autolayer.training.workbench import Workbench


@contextlib.contextmanager
def trainable(bench: Workbench, layers: Layers) -> Iterator[Trainable]:
    """Makes some layers of the model trainable inside, for TRL's trainer; outside, all of it is as it was."""
    with (
        undone(bench.model),
        train_only(bench.model, layers, quiet=True) as freeze,
        bench.micro_batching.checkpointed(layers),
    ):
        yield freeze


def kl_reference(bench: Workbench, layers: Layers) -> KLReference | None:
    """Builds the KL reference, or None when beta is 0. Call it on every rank.

    Args:
        bench: With these layers whole.
        layers: What is trained.
    """
    if not bench.settings.beta:
        return None
    return KLReference(bench.model, bench.parameters(layers), bench.base(layers), bench.scorer.shared_below(layers))


def make_trainer(
    bench: Workbench,
    arm: Arm,
    rows: Sequence[Row],
    num_steps: int,
    optimizer: MasterAdamW,
    on_rollouts: Callable[[Rollouts], None],
) -> LayerGRPOTrainer:
    """Makes the trainer of some steps of an arm, by the run's settings."""
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
        reference=kl_reference(bench, arm.layers),
        engine=bench.engine,
        optimizer=optimizer,
        micro_batch=bench.micro_batching.sequences(bench.longest),
        on_rollouts=on_rollouts,
        process_group=bench.process_group,
    )
