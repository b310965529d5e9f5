"""Frozen layers in 8 or 4 bits (bitsandbytes), so that a model takes a half or a quarter of the memory while one of its
layers is trained: LLM.int8 (arXiv 2208.07339) and NF4 (arXiv 2305.14314).

What is trained keeps its own precision, and gradients pass through the others' maps. Only linear maps inside blocks are
changed: embedding, head, norms, routers and experts that share one tensor stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autolayer.errors import ConfigError
from autolayer.layers import find_layers, linear_maps

BLOCK = 64
"""Weights that share a scale in 4 bits; maps whose rows are no multiple of it stay as they are."""


def check_installed() -> None:
    """Refuses --frozen where there is nothing to do it with."""
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f'--frozen needs bitsandbytes ({error}): `pip install "autolayer[quantized]"`.') from None


def quantize_frozen(model: Any, trained: Sequence[int], frozen: str, device: torch.device) -> int:
    """Replaces the linear maps of all blocks but some by quantized ones, one by one on the way to the device.

    Args:
        model: On the host, with the base weights.
        trained: Blocks that stay as they are.
        frozen: "8bit" or "4bit".
        device: Where the model goes; it never holds the whole of it in the model's own precision.

    Returns:
        How many maps were replaced.
    """
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its advice on faster kernels
    others = [index for index in range(len(find_layers(model))) if index not in trained]
    names = linear_maps(model, others)
    if frozen == "4bit":  # bitsandbytes (0.50) unpacks rows that end inside a block wrongly on a CPU
        names = [name for name in names if model.get_submodule(name).in_features % BLOCK == 0]
    for name in names:
        parent, _, own = name.rpartition(".")
        made = _quantized(bitsandbytes.nn, model.get_submodule(name), frozen, device)
        setattr(model.get_submodule(parent), own, made)
    model.to(device).requires_grad_(False)
    return len(names)


def _quantized(modules: Any, linear: Any, frozen: str, device: torch.device) -> nn.Module:
    kept = {"requires_grad": False}
    size = (linear.in_features, linear.out_features, linear.bias is not None)
    if frozen == "8bit":
        made = _always_training(modules.Linear8bitLt)(*size, has_fp16_weights=False)
        made.weight = modules.Int8Params(linear.weight.data, has_fp16_weights=False, **kept)
    else:
        made = _always_training(modules.Linear4bit)(*size, compute_dtype=linear.weight.dtype, quant_type="nf4")
        made.weight = modules.Params4bit(linear.weight.data, quant_type="nf4", compress_statistics=False, **kept)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data, **kept)
    return made.to(device)


def _always_training(kind: type) -> type:
    """A map that ignores `eval()`: in evaluation some of these compute otherwise on a CPU (rounding what comes in, or
    with weights packed anew), and what is sampled would not be what is trained."""
    return type(kind.__name__, (kind,), {"train": lambda self, mode=True: self})
