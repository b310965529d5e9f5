"""The blocks of a model: finding them, naming them, training only some of them, running some of them in float32.

Layers are integers, never strings: no parameter is ever chosen by a part of its name. Nothing here knows a
particular architecture. Left out: quantized weights, which cannot be trained.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from autolayer.core.errors import LayerError, ModelError
from autolayer.core.layer_set import Layers, parse_layers
from autolayer.models.fp32 import fp32_block, restore_forward
from autolayer.models.freeze_check import FreezeCheck
from autolayer.models.lora import adapter_parameters

_ROUTER_NAMES = ("gate", "router")
"""What transformers calls the child that sits beside `experts` and chooses among them."""


def find_layers(model: nn.Module) -> nn.ModuleList:
    """Returns the model's list of decoder blocks, in order.

    Raises:
        ModelError: The model is no transformers decoder with one list of equal blocks.
    """
    decoder: Any = model
    if hasattr(model, "get_decoder") and hasattr(model, "config"):
        wanted = getattr(decoder.config.get_text_config(decoder=True), "num_hidden_layers", None)
        for module in decoder.get_decoder().modules():
            fits = isinstance(module, nn.ModuleList) and len(module) == wanted
            if fits and all(isinstance(block, GradientCheckpointingLayer) for block in module):
                return module
    raise ModelError(
        f"no list of decoder blocks in {type(model).__name__}: layers can only be chosen in a decoder of the "
        "transformers library; give the unwrapped AutoModelForCausalLM."
    )


def layer_parameters(model: nn.Module, layers: Layers) -> dict[str, nn.Parameter]:
    """The parameters that are trained for a set of layers, by full name. Routers of MoE blocks are never among them.

    Args:
        model: A model `find_layers` accepts.
        layers: Non-negative indices, or "full" for everything but routers. Tied weights appear once. In a model with
            LoRA adapters only they are trained, of these layers.

    Raises:
        LayerError: A layer is not there, shares weights with the rest of the model, or is quantized.
    """
    blocks = find_layers(model)
    routers = {id(p) for module in _routers(model) for p in module.parameters()}
    if layers == "full":
        chosen = {id(p) for p in model.parameters()} - routers
    else:
        indices = [int(index) for index in parse_layers(layers, len(blocks), type(model).__name__)]
        inside = [p for index in indices for p in blocks[index].parameters()]
        chosen = {id(p) for p in inside} - routers
        counts: dict[int, int] = {}
        for _, p in model.named_parameters(remove_duplicate=False):
            counts[id(p)] = counts.get(id(p), 0) + 1
        for index in indices:
            for _, p in blocks[index].named_parameters(remove_duplicate=False):
                counts[id(p)] -= 1
        shared = [name for name, p in model.named_parameters() if id(p) in chosen and counts[id(p)] > 0]
        if shared:
            raise LayerError(f"{shared[0]} is shared with other layers: it cannot be trained alone; train 'full'.")
    if adapters := adapter_parameters(model):
        chosen &= adapters
    trained = {name: p for name, p in model.named_parameters() if id(p) in chosen}
    stiff = [name for name, p in trained.items() if not p.is_floating_point()]
    if stiff:
        raise LayerError(f"{stiff[0]} is quantized and cannot be trained: load the model in bfloat16 or float32.")
    return trained


def linear_module_names(model: nn.Module, layers: Sequence[int]) -> list[str]:
    """Full names of the linear maps in some layers, routers left out: where LoRA puts its adapters."""
    blocks = find_layers(model)
    inside = {id(m) for index in layers for m in blocks[index].modules() if isinstance(m, nn.Linear)}
    routers = {id(module) for module in _routers(model)}
    return [name for name, module in model.named_modules() if id(module) in inside - routers]


def head_ratio(model: nn.Module) -> float:
    """Parameters of the output head divided by those of one block."""
    blocks = find_layers(model)
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head: give a causal language model.")
    return _count(head.parameters()) * len(blocks) / _count(blocks.parameters())


@dataclass(kw_only=True)
class Trainable:
    """What `train_only` leaves trainable."""

    layers: Layers
    trainable: int
    """Parameters that are trained; tied ones count once."""
    total: int
    """Parameters of the whole model."""
    expect_gradient: bool = True
    """Set it to False inside when every advantage was zero: then no gradient at all is no error."""

    @property
    def share(self) -> float:
        return self.trainable / self.total


@contextmanager
def train_only(model: nn.Module, layers: str | int | Sequence[int], *, quiet: bool = False) -> Iterator[Trainable]:
    """Trains only some layers of a model, around any training loop, and proves it.

    Example:
        with train_only(model, 16):
            GRPOTrainer(model, ...).train()  # or your own loop; build the optimizer inside

    After the first optimizer step with a gradient that is not zero, and again on leaving: every listed layer got a
    gradient, and every other weight is bit for bit what it was. Leaving restores `requires_grad`, gradients,
    `model.forward`, checkpointing and the hooks on the input embedding (trainers leave their own behind); the
    trained weights stay. May be nested: the inner set of layers counts until it is left.

    Args:
        model: A transformers decoder.
        layers: As for `parse_layers`, "full" included.
        quiet: Without the line on stderr that says how much is trained.

    Raises:
        LayerError: The layers do not exist, or the freeze or the training did not hold.
    """
    blocks = find_layers(model)
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    chosen = parse_layers(layers, len(blocks), name, allow_full=True)
    trained = layer_parameters(model, chosen)
    frozen = {n: p for n, p in model.named_parameters() if n not in trained}
    ids = {id(p) for p in trained.values()}
    indices = range(len(blocks)) if chosen == "full" else chosen
    by_layer = {index: [p for p in blocks[index].parameters() if id(p) in ids] for index in indices}
    result = Trainable(layers=chosen, trainable=_count(trained.values()), total=_count(model.parameters()))
    with ExitStack() as undo:
        undo.callback(_snapshot(model))
        for n, p in model.named_parameters():
            p.grad = None  # an old gradient would be stepped on, or be taken for a new one
            p.requires_grad_(n in trained)
        watch = undo.enter_context(FreezeCheck(model, by_layer, frozen))
        if not quiet:
            what = "all layers" if chosen == "full" else f"layer{'s' * (len(chosen) > 1)} {','.join(map(str, chosen))}"
            print(
                f"autolayer: training {what} of {len(blocks)}: {result.trainable:,} of {result.total:,} parameters "
                f"({result.share:.2%})",
                file=sys.stderr,
            )
        yield result
        watch.check(expect_gradient=result.expect_gradient)  # not reached when the body raised: its own error counts


@contextmanager
def fp32_layers(model: nn.Module, layers: Layers, *, keep: bool = False) -> Iterator[None]:
    """Runs some blocks in float32, without autocast, while the rest of the model keeps its dtype.

    The weights become float32 copies that may be changed freely. On leaving, the original tensors come back bit for
    bit, so changes are lost unless `keep`. Gradients taken inside are float32 and are dropped on leaving. Does
    nothing to blocks that are float32 already; there changes stay in any case.

    Args:
        model: A transformers decoder.
        layers: Non-negative indices, or "full" for every block.
        keep: Round the changed weights back into the original tensors on leaving.
    """
    blocks = find_layers(model)
    with ExitStack() as undo:
        for index in range(len(blocks)) if layers == "full" else layers:
            undo.enter_context(fp32_block(blocks[index], keep=keep))
        yield


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """Returns a function that puts flags, gradients, forward, checkpointing and embedding hooks back."""
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


def _routers(model: nn.Module) -> list[nn.Module]:
    """The children that choose among experts: `gate` or `router`, in a module that also has a child `experts`."""
    homes = [dict(module.named_children()) for module in model.modules()]
    return [home[name] for home in homes if "experts" in home for name in _ROUTER_NAMES if name in home]


def _count(parameters: Any) -> int:
    """Their entries, also of those that are packed into fewer (quantize.py)."""
    return sum(getattr(p, "num_entries", p.numel()) for p in parameters)
