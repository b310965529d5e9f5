"""The reference policy of the KL term: the same model with the base weights in its trained layers, not a second model.

Below the lowest trained layer, policy and reference are equal. The policy's forward pass therefore starts at that
layer, from the hidden state that the reference's pass computed, so the layers below run once for both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autolayer.models.layers import find_layers
from autolayer.training.skip_blocks import skipping


class KLReference:
    """Turns the policy into its own reference by swapping base weights in.

    For each micro-batch, run the reference's forward pass inside `swapped_in`, then the policy's inside `shared`.
    Parameters and base weights have the same full names; a sharded model holds them whole (`fsdp.whole`). The policy's
    passes start at block `lowest`, below which policy and reference are equal.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        base: Mapping[str, torch.Tensor],
        lowest: int,
    ) -> None:
        self.parameters = parameters
        self.base = {name: base[name].to(parameter.device, parameter.dtype) for name, parameter in parameters.items()}
        self.blocks = list(find_layers(model))
        self.lowest = lowest
        self._state: torch.Tensor | None = None

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Puts the base weights in, without gradients, while the block runs; saves the hidden state for `shared`."""

        def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._state = (args[0] if args else kwargs["hidden_states"]).detach()

        own = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():  # swaps storages, copies nothing
                parameter.data = self.base[name]
            with self.blocks[self.lowest].register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
                yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Makes the policy's forward pass start at block `lowest`, from the hidden state that `swapped_in` saved."""
        assert self._state is not None, "run the reference's pass first, inside `swapped_in`"
        try:
            with skipping(self.blocks[: self.lowest], self._state):
                yield
        finally:
            self._state = None
