"""Shards a model that is too large for one device over the ranks of a run (FSDP2).

Each block is a group of torch's `fully_shard`. Embedding and head, as large as a few blocks at most, stay whole. A
block that is trained, or changed by a probe, is held whole for that time, as ordinary parameters. Code that works on a
layer is therefore the same without shards, the optimizer averages the gradients (process_group.py), and resharding
restores the base weights. Unsharding needs all ranks, so all ranks must make the same forward passes.
"""

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
    """Creates a one-dimensional device mesh of all ranks, or refuses a torch that is too old. Call it on every rank."""
    if not hasattr(fsdp, "share_comm_ctx"):
        raise ConfigError(f"--shard needs a newer torch than {torch.__version__}: install 2.13, or leave it out.")
    return init_device_mesh(device.type, (process_group.world_size,))


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], process_group: ProcessGroup, mesh: DeviceMesh, device: torch.device
) -> None:
    """Shards the blocks of a model in host memory, and moves this rank's part of them to its device.

    The model has the same weights on every rank. All ranks shard it, at once or one after the other.
    """
    sharded: list[Any] = [fsdp.fully_shard(block, mesh=mesh, reshard_after_forward=True) for block in blocks]
    for state in sharded:
        state.set_requires_gradient_sync(False)  # hooks take a gradient before FSDP could reduce it
        # No prefetch, because the next pass may begin or end at another block than the last one.
        state.set_modules_to_backward_prefetch([state])
    fsdp.share_comm_ctx(sharded)  # each block is a root, and would use its own streams and buffers
    _SHARDS[model] = _Shards(sharded, process_group)
    model.to(device)


def is_sharded(model: nn.Module) -> bool:
    """Returns True if `shard` has sharded this model."""
    return model in _SHARDS


@contextmanager
def unsharded(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Holds some blocks whole, as ordinary parameters, while the `with` block runs; then restores their base weights.

    All ranks must enter and leave together. Does nothing if the model is not sharded.
    """
    shards = _SHARDS.get(model)
    if shards is None:
        yield
        return
    assert layers != "full", "a sharded model is too large to hold all blocks whole"
    with shards.unsharded(layers):
        yield


def number_of_rank_0(model: nn.Module, number: int) -> int:
    """Returns rank 0's number if the model is sharded, whose ranks must agree on the number of passes."""
    shards = _SHARDS.get(model)
    return number if shards is None else shards.process_group.broadcast(number)


class _Shards:
    """The blocks of a sharded model, and for each the number of callers that hold it whole."""

    def __init__(self, blocks: Sequence[Any], process_group: ProcessGroup) -> None:
        self.blocks, self.process_group = list(blocks), process_group
        self._uses: Counter[int] = Counter()

    @contextmanager
    def unsharded(self, layers: Sequence[int]) -> Iterator[None]:
        with ExitStack() as undo:
            for index in layers:
                self._uses[index] += 1
                undo.callback(self._release, index)
                self._set_reshard(index, False)
                self.blocks[index].unshard()
            yield

    def _release(self, index: int) -> None:
        self._uses[index] -= 1
        if not self._uses[index]:
            self._set_reshard(index, True)
            self.blocks[index].reshard()

    def _set_reshard(self, index: int, reshard: bool) -> None:
        self.blocks[index].set_reshard_after_forward(reshard)
        self.blocks[index].set_reshard_after_backward(reshard)


_SHARDS: WeakKeyDictionary[nn.Module, _Shards] = WeakKeyDictionary()
"""The models that `shard` has sharded."""
