"""The decoder blocks of a model: finding them, parsing sets of them, and listing their parameters.

A layer is an index into the block list, and no parameter is chosen by a part of its name, so this works for every
decoder of transformers. Quantized weights cannot be trained and are refused.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from autolayer.core.errors import LayerError, ModelError
from autolayer.core.layer_set import Layers, parse_layers
from autolayer.distributed.fsdp import unsharded
from autolayer.models.lora import adapter_parameters, can_adapt

_ROUTER_NAMES = ("gate", "router")
"""Names that transformers gives to the module beside `experts` that chooses among them."""


def find_layers(model: nn.Module) -> nn.ModuleList:
    """Returns the model's list of decoder blocks, in order.

    Raises:
        ModelError: The model is not a transformers decoder with one list of blocks.
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
        "transformers library, unwrapped, with one list of num_hidden_layers blocks (docs/architectures.md)."
    )


def layer_parameters(model: nn.Module, layers: Layers) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained for a set of layers, by full name; routers of MoE blocks stay frozen.

    Args:
        model: A model that `find_layers` accepts.
        layers: Non-negative indices, or "full" for everything but routers. Tied weights appear once. In a model with
            LoRA adapters, only the adapters of these layers are returned.

    Raises:
        LayerError: A layer does not exist, shares weights with the rest of the model, or is quantized.
    """
    blocks = find_layers(model)
    routers = {id(p) for module in router_modules(model) for p in module.parameters()}
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
    quantized = [name for name, p in trained.items() if not p.is_floating_point()]
    if quantized:
        raise LayerError(f"{quantized[0]} is quantized and cannot be trained: load the model in bfloat16 or float32.")
    return trained


def pass_parameters(model: nn.Module, layers: Sequence[int]) -> dict[str, nn.Parameter]:
    """Returns the parameters that forward passes compute with, and that get gradients, by full name.

    In a sharded model these are not the objects of `layer_parameters`, which are this rank's shards, but the whole
    parameters that FSDP fills before every pass and empties after it. Their `requires_grad` follows that of the shards.

    Args:
        model: A model that `find_layers` accepts.
        layers: Non-negative indices.
    """
    found: dict[str, nn.Parameter] = {}
    for layer in layers:
        with unsharded(model, (layer,)):
            found |= layer_parameters(model, (layer,))
    return found


def linear_module_names(model: nn.Module, layers: Sequence[int]) -> list[str]:
    """Returns the full names of the `nn.Linear` modules in some layers, which LoRA adapts.

    Routers are left out, and what PEFT cannot adapt.
    """
    blocks = find_layers(model)
    inside = {id(m) for index in layers for m in blocks[index].modules() if isinstance(m, nn.Linear)}
    routers = {id(module) for module in router_modules(model)}
    names = [name for name, module in model.named_modules() if id(module) in inside - routers]
    adapted = {last for last in {name.rpartition(".")[2] for name in names} if can_adapt(model, last)}
    return [name for name in names if name.rpartition(".")[2] in adapted]


def head_ratio(model: nn.Module) -> float:
    """Returns the number of parameters of the output head divided by that of one block.

    Raises:
        ModelError: The model has no output head.
    """
    blocks = find_layers(model)
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head: give a causal language model.")
    return count_parameters(head.parameters()) * len(blocks) / count_parameters(blocks.parameters())


def router_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules named `gate` or `router` whose parent also has a child `experts`."""
    homes = [dict(module.named_children()) for module in model.modules()]
    return [home[name] for home in homes if "experts" in home for name in _ROUTER_NAMES if name in home]


def count_parameters(parameters: Iterable[Any]) -> int:
    """Returns the total number of entries of some parameters."""
    return sum(p.numel() for p in parameters)
