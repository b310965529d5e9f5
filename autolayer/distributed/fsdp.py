"""A model that is too large for one device, sharded over the ranks of a run (FSDP2).

Each block is a separate group (torch's `fully_shard`), unsharded when a pass reaches it and resharded behind it.
Embedding and head are a few blocks at most and stay whole on every rank. Blocks that are trained, or stepped by a
probe, are held whole meanwhile, as ordinary parameters: code that works on a layer works as it does without shards, the
optimizer averages the gradients (process_group.py), and resharding a block brings its base weights back.

Unsharding takes all ranks, so all of them make the same passes always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed.fsdp as fsdp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autolayer.core.errors import ConfigError
from autolayer.core.layer_set import Layers
from autolayer.distributed.process_group import ProcessGroup


def make_mesh(process_group: ProcessGroup, device: torch.device) -> DeviceMesh:
    """Returns all ranks in a row. Call it on all of them at once.

    Raises:
        ConfigError: This torch is too old.
    """
    if not hasattr(fsdp, "share_comm_ctx"):
        raise ConfigError(f"--shard needs a newer torch than {torch.__version__}: install 2.13, or leave it out.")
    return init_device_mesh(device.type, (process_group.world_size,))


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], process_group: ProcessGroup, mesh: DeviceMesh, device: torch.device
) -> None:
    """Shards the blocks of a model that is in host memory, and moves this rank's part to its device.

    Args:
        model: The same on every rank.
        blocks: Its decoder blocks, in order.
        process_group: All its ranks shard the model, at once or one after the other.
        mesh: Their mesh (`make_mesh`).
        device: Of this rank.
    """
    sharded: list[Any] = [fsdp.fully_shard(block, mesh=mesh, reshard_after_forward=True) for block in blocks]
    for state in sharded:
        state.set_requires_gradient_sync(False)  # a gradient is taken before FSDP could reduce it
        # No prefetch: the order of the last pass says nothing, since passes may begin or end in the middle.
        state.set_modules_to_backward_prefetch([state])
    fsdp.share_comm_ctx(sharded)  # each is a separate root, which would otherwise have its own streams and buffers
    _SHARDED[model] = _Shards(sharded, process_group)
    model.to(device)


def is_sharded(model: nn.Module) -> bool:
    """Returns whether `shard` has divided this model."""
    return model in _SHARDED


@contextmanager
def whole(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Holds some blocks whole inside, as ordinary parameters; on leaving they are the base again.

    All ranks have to enter and leave together. Does nothing where the model is not sharded.
    """
    shards = _SHARDED.get(model)
    if shards is None:
        yield
        return
    assert layers != "full", "all blocks at once are what does not fit"
    with shards.holding(layers):
        yield


def agreed(model: nn.Module, number: int) -> int:
    """Returns rank 0's number where the model is sharded, such as a batch size: all ranks make the same passes."""
    shards = _SHARDED.get(model)
    return number if shards is None else shards.process_group.broadcast(number)


class _Shards:
    """The blocks of a sharded model, and how often each is held whole."""

    def __init__(self, blocks: Sequence[Any], process_group: ProcessGroup) -> None:
        self.blocks, self.process_group = list(blocks), process_group
        self._held: Counter[int] = Counter()

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

    def _keep(self, index: int, kept: bool) -> None:
        self.blocks[index].set_reshard_after_forward(not kept)
        self.blocks[index].set_reshard_after_backward(not kept)


_SHARDED: WeakKeyDictionary[nn.Module, _Shards] = WeakKeyDictionary()
