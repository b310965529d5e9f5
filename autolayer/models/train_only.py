"""Trains only some layers of a model, around any training loop, and checks that everything else stayed frozen."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from autolayer.core.layer_set import Layers, name_layers, parse_layers
from autolayer.models.fp32 import restore_forward
from autolayer.models.freeze_check import FreezeCheck
from autolayer.models.layers import count_parameters, find_layers, layer_parameters


@dataclass(kw_only=True)
class Trainable:
    """The trainable part of a model inside `train_only`."""

    layers: Layers
    trainable: int
    """Number of parameters that are trained; tied ones count once."""
    total: int
    """Number of parameters of the whole model."""
    expect_gradient: bool = True
    """Set it to False inside the block when every advantage was zero: then a missing gradient is not an error."""

    @property
    def share(self) -> float:
        """The trained share of all parameters."""
        return self.trainable / self.total


@contextmanager
def train_only(model: nn.Module, layers: str | int | Sequence[int], *, quiet: bool = False) -> Iterator[Trainable]:
    """Trains only some layers of a model, around any training loop, and checks that nothing else changed.

    The check runs after the first optimizer step with a non-zero gradient, and again on leaving: every listed layer
    got a gradient, and every other weight is bit-identical. Leaving restores `requires_grad`, gradients,
    `model.forward`, activation checkpointing and the hooks on the input embedding (trainers leave their own behind);
    the trained weights stay. Blocks can be nested: the innermost one decides what is trained.

    Args:
        model: A transformers decoder.
        layers: Layers as `parse_layers` accepts them, "full" included.
        quiet: Do not print the trainable share on stderr.

    Yields:
        The numbers of trainable parameters; set `expect_gradient` on it to accept steps without a gradient.

    Raises:
        LayerError: The layers do not exist, a listed layer was not trained, or a frozen weight changed.

    Example:
        with train_only(model, 16):
            GRPOTrainer(model, ...).train()  # or your own loop; build the optimizer inside
    """
    blocks = find_layers(model)
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    chosen = parse_layers(layers, len(blocks), name, allow_full=True)
    trained = layer_parameters(model, chosen)
    frozen = {n: p for n, p in model.named_parameters() if n not in trained}
    ids = {id(p) for p in trained.values()}
    indices = range(len(blocks)) if chosen == "full" else chosen
    by_layer = {index: [p for p in blocks[index].parameters() if id(p) in ids] for index in indices}
    result = Trainable(
        layers=chosen, trainable=count_parameters(trained.values()), total=count_parameters(model.parameters())
    )
    with ExitStack() as undo:
        undo.callback(_snapshot(model))
        for n, p in model.named_parameters():
            p.grad = None  # an old gradient would be applied, or be mistaken for a new one
            p.requires_grad_(n in trained)
        check = undo.enter_context(FreezeCheck(model, by_layer, frozen))
        if not quiet:
            print(
                f"autolayer: training {name_layers(chosen)} of {len(blocks)}: {result.trainable:,} of {result.total:,} "
                f"parameters ({result.share:.2%})",
                file=sys.stderr,
            )
        yield result
        check.verify(expect_gradient=result.expect_gradient)  # not reached when the body raised: its own error counts


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """Returns a function that restores flags, gradients, forward, checkpointing and the hooks of the embedding."""
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    forward = model.__dict__.get("forward")
    checkpointing = [(m, m.gradient_checkpointing) for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    hooks = cast(Any, model).get_input_embeddings()._forward_hooks
    known = set(hooks)

    def restore() -> None:
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
        restore_forward(model, forward)
        for module, value in checkpointing:
            module.gradient_checkpointing = value
        for key in set(hooks) - known:
            del hooks[key]

    return restore
