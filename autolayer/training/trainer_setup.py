"""Sets up training: makes layers trainable, builds the KL reference, creates the trainer with the run's settings."""

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
    """Makes only some layers trainable while the block runs, and undoes everything that TRL's trainer changes.

    Args:
        bench: The workbench.
        layers: The layers to train.

    Yields:
        The record of `train_only`; set `expect_gradient` on it before the block ends.

    Raises:
        LayerError: A listed layer was not trained, or a frozen weight changed.
    """
    with (
        undone(bench.model),
        train_only(bench.model, layers, quiet=True) as freeze,
        bench.micro_batching.checkpointed(layers),
    ):
        yield freeze


def kl_reference(bench: Workbench, layers: Layers) -> KLReference | None:
    """Builds the KL reference, or None when beta is 0. Call it on every rank.

    Args:
        bench: The workbench; if the model is sharded, these layers must be held whole (`fsdp.whole`).
        layers: The trained layers.
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
    """Creates the trainer that trains an arm for some steps, with the run's settings.

    Args:
        bench: The workbench, with the arm's weights in the model.
        arm: The arm, at the step where training starts.
        rows: The prompts of all steps in order, equally many for each step.
        num_steps: Number of optimizer steps.
        optimizer: The optimizer of the arm's parameters.
        on_rollouts: Called at every step with the rewarded rollouts of all ranks.
    """
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
