"""The reference policy of the KL term: the policy itself with the base weights of what is trained. No second model.

Below the lowest trained layer both are the same, so the policy's pass starts at that layer, from the state that the
reference's pass has brought to it: together they run the layers below once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autolayer.models.layers import find_layers
from autolayer.training.skip_blocks import skipping


class KLReference:
    """Swaps the base weights in for the reference's pass over a micro-batch, which precedes the policy's.

    Args:
        model: The policy.
        parameters: What is trained, by name.
        base: Its base weights, by the same names; copied to the policy's device.
        lowest: The block up to which policy and reference are the same, and the policy's passes may start.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        base: Mapping[str, torch.Tensor],
        lowest: int,
    ) -> None:
        self.parameters = parameters
        self.base = {name: base[name].to(parameter.device) for name, parameter in parameters.items()}
        self.blocks = list(find_layers(model))
        self.lowest = lowest
        self._state: torch.Tensor | None = None

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Makes the policy the reference inside, without gradients; keeps what enters the lowest layer."""

        def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._state = (args[0] if args else kwargs["hidden_states"]).detach()

        own = {name: parameter.data for name, parameter in self.parameters.items()}
        handle = self.blocks[self.lowest].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            for name, parameter in self.parameters.items():  # the storages change places: nothing is copied
                parameter.data = self.base[name]
            with torch.no_grad():
                yield
        finally:
            handle.remove()
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Makes a pass of the policy inside start at the lowest layer, from the state of the reference's pass."""
        assert self._state is not None, "the reference's pass comes first"
        try:
            with skipping(self.blocks[: self.lowest], self._state):
                yield
        finally:
            self._state = None
