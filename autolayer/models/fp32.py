"""Runs single blocks in true float32 inside a model of another dtype.

The forward method of a block is wrapped. A pair of hooks would leave autocast off after an error in the block, and
other hooks on the block would see float32 tensors.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from autolayer.core.layer_set import Layers
from autolayer.models.layers import find_layers


@contextmanager
def fp32_layers(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Runs some blocks in float32, without autocast, while the rest of the model keeps its dtype.

    Floating-point inputs of a block, keyword arguments included, are cast up, and its outputs back. The weights become
    float32 copies that may be changed freely. On leaving, the original tensors are restored
    bit-identical, so changes are lost. Gradients computed inside are float32 and are dropped on
    leaving. Does nothing to blocks that are float32 already, where changes always stay.

    Args:
        model: A transformers decoder.
        layers: Non-negative indices, or "full" for every block.
    """
    blocks = find_layers(model)
    with ExitStack() as undo:
        for block in blocks if layers == "full" else (blocks[index] for index in layers):
            tensors = [t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point()]
            narrow = [t for t in tensors if t.dtype != torch.float32]
            if narrow:
                undo.callback(restore_forward, block, block.__dict__.get("forward"))
                block.forward = _in_float32(block.forward, narrow[0].dtype)
            for tensor in narrow:
                undo.callback(_restore_data, tensor, tensor.data, tensor.grad)
                tensor.grad = None  # its dtype would no longer fit
                tensor.data = tensor.data.float()
        yield


def restore_forward(module: nn.Module, forward: Any) -> None:
    """Restores `module.__dict__.get("forward")`: an override on the instance, or None for the forward of the class."""
    if forward is not None:
        module.forward = forward
    else:
        module.__dict__.pop("forward", None)


def _in_float32(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        with torch.autocast(next(tensors).device.type, enabled=False):
            output = forward(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
        return _cast(output, dtype)

    return wrapped


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Casts floating-point tensors in nested tuples, lists and dicts; other objects (caches) pass untouched."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(item, dtype) for item in value)
    if type(value) is dict:
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value


def _restore_data(tensor: torch.Tensor, data: torch.Tensor, grad: torch.Tensor | None) -> None:
    tensor.grad = None
    tensor.data = data
    tensor.grad = grad
