"""A model that is too large for one device, in shards over the processes of a run (FSDP2).

Each block is a group of its own (torch's `fully_shard`): gathered when a pass reaches it, let go behind it. Embedding
and head are a few blocks at the most and stay whole everywhere. Blocks that are trained, or stepped by a probe, are
held whole meanwhile, as ordinary parameters: whatever works on a layer works as it does without shards, the optimizer
averages the gradients (ranks.py), and letting go of a block brings its base weights back.

A gather takes all processes. In a training step all make the same passes. At all other times the leader runs alone,
and each of its gathers is an order to the others: however a pass ends, nobody waits for a gather that never comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.distributed.fsdp as fsdp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autolayer.core.errors import ConfigError
from autolayer.core.layer_set import Layers
from autolayer.distributed.process_group import Ranks, attempt
from autolayer.models.layers import find_layers, layer_parameters

T = TypeVar("T")


def make_mesh(ranks: Ranks, device: torch.device) -> DeviceMesh:
    """All processes in a row; by all of them at once.

    Raises:
        ConfigError: This torch cannot.
    """
    if not hasattr(fsdp, "share_comm_ctx"):
        raise ConfigError(f"--shard needs a newer torch than {torch.__version__}: install 2.13, or leave it out.")
    return init_device_mesh(device.type, (ranks.num,))


def shard(model: nn.Module, ranks: Ranks, mesh: DeviceMesh, device: torch.device) -> None:
    """Divides the blocks of a model that is in host memory, and moves this process's part to its device."""
    _SHARDED[model] = _Shards(model, ranks, mesh)
    model.to(device)


def is_sharded(model: nn.Module) -> bool:
    """Returns True if the blocks of the model are divided among the processes."""
    return model in _SHARDED


@contextmanager
def whole(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Holds some blocks whole inside, as ordinary parameters; on leaving they are the base again.

    In a training step all processes have to do so at once. Nothing happens where the model is not in shards.
    """
    shards = _SHARDED.get(model)
    if shards is None:
        yield
        return
    assert layers != "full", "all blocks at once are what does not fit"
    with shards.holding(layers):
        yield


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """All processes make the same passes inside, so that gathers need no orders."""
    shards = _SHARDED.get(model)
    if shards is None:
        yield
        return
    shards.let_go()
    shards.together = True
    try:
        yield
    finally:
        shards.together = False
        shards.let_go()


def led(model: nn.Module, work: Callable[[], T]) -> T:
    """Inside a step: the leader does some work alone, and all get what comes of it.

    Raises:
        Exception: What the leader's work has raised, in all processes.
    """
    shards = _SHARDED[model]
    ranks, shards.together = shards.ranks, False
    found: T | Exception
    try:
        if ranks.leads:
            found = attempt(work)
            ranks.order("done", found)
        else:
            while (order := ranks.next_order())[0] == "gather":
                gather(model, *order[1])
            assert order[0] == "done", order[0]
            found = cast(T | Exception, order[1][0])
    finally:
        shards.let_go()
        shards.together = True
    if isinstance(found, Exception):
        ranks.told = found
        raise found.with_traceback(None)  # which holds the tensors of what has failed
    return found


def gather(model: nn.Module, index: int) -> None:
    """By a follower: gives its part of a block to the leader."""
    block = cast(fsdp.FSDPModule, find_layers(model)[index])
    block.unshard()
    block.reshard()


def computing(model: nn.Module, layers: Sequence[int]) -> dict[str, nn.Parameter]:
    """The parameters that passes compute with, by full name, and so those that get gradients.

    In shards these are the same objects in every pass, which hold nothing between two; whether they want a gradient is
    asked of the shards.
    """
    found: dict[str, nn.Parameter] = {}
    for layer in layers:
        with whole(model, (layer,)):
            found |= layer_parameters(model, (layer,))
    return found


class _Shards:
    """What is held of a model in shards."""

    def __init__(self, model: nn.Module, ranks: Ranks, mesh: DeviceMesh) -> None:
        self.ranks, self.together = ranks, False
        self.blocks: list[Any] = list(find_layers(model))
        self._held: Counter[int] = Counter()
        for index, block in enumerate(self.blocks):
            fsdp.fully_shard(block, mesh=mesh, reshard_after_forward=True)
            block.set_custom_all_gather(_Gather(self, index))
            block.set_requires_gradient_sync(False)  # whoever wants a gradient takes it before it could be reduced
            # None: what would be gathered ahead depends on earlier passes, which the leader alone has made.
            block.set_modules_to_backward_prefetch([block])
        fsdp.share_comm_ctx(self.blocks)  # each is a root of its own, and would have streams and buffers of its own

    @contextmanager
    def holding(self, layers: Sequence[int]) -> Iterator[None]:
        with ExitStack() as undo:
            for index in layers:
                self._held[index] += 1
                undo.callback(self._release, index)
                self._keep(index, True)
                self.blocks[index].unshard()
            yield

    def _release(self, index: int) -> None:
        self._held[index] -= 1
        if not self._held[index]:
            self._keep(index, False)
            self.blocks[index].reshard()

    def let_go(self) -> None:
        """Of blocks that a pass which ended half-way has left whole."""
        for index, block in enumerate(self.blocks):
            if not self._held[index]:
                block.reshard()

    def _keep(self, index: int, kept: bool) -> None:
        self.blocks[index].set_reshard_after_forward(not kept)
        self.blocks[index].set_reshard_after_backward(not kept)


class _Gather:
    """In place of FSDP's own all-gather of a block (`FSDPModule.set_custom_all_gather`)."""

    def __init__(self, shards: _Shards, index: int) -> None:
        self.shards, self.index = shards, index

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        if self.shards.ranks.leads and not self.shards.together:
            self.shards.ranks.order("gather", self.index)
        return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""The newer of its two names, where torch has it."""

_SHARDED: WeakKeyDictionary[nn.Module, _Shards] = WeakKeyDictionary()
