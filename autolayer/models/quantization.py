"""Frozen layers in 8 or 4 bits: half or a third of the memory while one layer is trained.

8 bits: each row of a map with a scale of its own, as LLM.int8 keeps weights (arXiv 2208.07339); 4 bits: NF4 in blocks
of 64 (arXiv 2305.14314), by bitsandbytes. Activations are not rounded: a pass unpacks one map at a time, and keeps
neither it nor what went into it. What is trained keeps its own precision. Only linear maps inside blocks are packed:
embedding, head, norms, routers and experts that share one tensor stay as they are.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autolayer.core.errors import ConfigError, ModelError
from autolayer.models.layers import find_layers, linear_module_names

BLOCK = 64
"""Weights that share a scale in 4 bits. Maps whose rows are no multiple of it stay as they are: bitsandbytes (0.50)
unpacks them wrongly on a CPU."""


def check_installed(frozen: str) -> None:
    """Refuses --frozen where there is nothing to do it with."""
    if frozen == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError('--frozen 4bit needs bitsandbytes: `pip install "autolayer[quantized]"`, or give 8bit.')


def quantize_frozen(model: Any, trained: Sequence[int], frozen: str, device: torch.device) -> float:
    """Packs the linear maps of all blocks but some, one by one on the way to the device.

    Args:
        model: On the host, with the base weights.
        trained: Blocks that stay as they are.
        frozen: "8bit" or "4bit".
        device: Where the model goes; it never holds the whole of it in the model's own precision.

    Returns:
        The share of the model's parameters that is packed now.

    Raises:
        ModelError: There is nothing to pack.
    """
    whole = sum(parameter.numel() for parameter in model.parameters())
    packed = 0
    for name in linear_module_names(model, [index for index in range(len(find_layers(model))) if index not in trained]):
        linear = model.get_submodule(name)
        if frozen == "4bit" and linear.in_features % BLOCK:
            continue
        parent, _, own = name.rpartition(".")
        packed += linear.weight.numel()
        setattr(model.get_submodule(parent), own, (Packed8 if frozen == "8bit" else Packed4)(linear, device))
    if not packed:
        raise ModelError(
            f"--frozen {frozen} finds no linear map that it could pack in {type(model).__name__}: leave it out."
        )
    model.to(device).requires_grad_(False)
    return packed / whole


class Packed(nn.Module, ABC):
    """A frozen linear map. What it is made of are parameters, so that the proof of a freeze sees all of it."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.to(device), requires_grad=False)

    def _keep(self, name: str, tensor: torch.Tensor, num_entries: int) -> None:
        parameter = nn.Parameter(tensor, requires_grad=False)
        parameter.num_entries = num_entries  # pyright: ignore[reportAttributeAccessIssue]
        self.register_parameter(name, parameter)

    @abstractmethod
    def unpacked(self) -> torch.Tensor:
        """The weights that it stands for, (out, in), in the model's dtype."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return _Apply.apply(states, self)


class Packed8(Packed):
    """One scale for each row."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__(linear, device)
        weight = linear.weight.data.to(device).float()
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self._keep("weight", (weight / scale).round().to(torch.int8), weight.numel())
        self._keep("scale", scale, 0)

    def unpacked(self) -> torch.Tensor:
        return (self.weight * self.scale).to(self.dtype)


class Packed4(Packed):
    """NF4."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

        super().__init__(linear, device)
        self._functional = functional
        packed, self._state = functional.quantize_4bit(
            linear.weight.data.to(device), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
        )
        self._keep("weight", packed, linear.weight.numel())
        self._keep("scale", self._state.absmax, 0)
        self._state.absmax = self.scale

    def unpacked(self) -> torch.Tensor:
        return self._functional.dequantize_4bit(self.weight.data, self._state).to(self.dtype)


class _Apply(torch.autograd.Function):
    """A linear map whose weights are unpacked again for the backward pass, and that has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        ctx.packed = packed
        return nn.functional.linear(states, packed.unpacked(), packed.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] @ ctx.packed.unpacked(), None
