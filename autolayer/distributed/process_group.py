"""Several processes at one run (`accelerate launch`, `torchrun`): the first leads, the others follow.

The leader runs the whole program alone: it decides, talks to Optuna, writes files and the screen. What is heavy it
orders the followers to do with it (`Ranks.order`): each process samples its share of the prompts, and trains on it;
rollouts are gathered, gradients averaged. Followers hold the same weights as the leader and know nothing of the search,
so the program has no second flow to keep in step.

Gradients are averaged when the optimizer steps. A wrapper such as DDP would do it while the backward pass runs, and for
one layer there is nothing to hide behind it: a hundredth of the model is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from autolayer.core.errors import ConfigError, RanksError
from autolayer.core.launch import num_processes

PATIENCE = timedelta(days=30)
"""Followers wait while the leader probes, judges or decides."""

T = TypeVar("T")


class Ranks:
    """The processes of a run. With one, every method does what is left to do: nothing."""

    def __init__(self, index: int = 0, num: int = 1) -> None:
        self.index, self.num = index, num
        self.is_broken = False
        self.told: Exception | None = None
        """The last exception that all processes were told of."""
        # Orders and rollouts are Python objects: sent by way of the host, whatever moves gradients.
        self._group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if num > 1 else None

    @property
    def leads(self) -> bool:
        return self.index == 0

    def order(self, name: str, *arguments: Any) -> None:
        """By the leader: has the followers do something as well."""
        if self.num > 1:
            dist.broadcast_object_list([(name, arguments)], src=0, group=self._group)

    def next_order(self) -> tuple[str, tuple[Any, ...]]:
        """By a follower: waits for what is to be done."""
        received: list[Any] = [None]
        dist.broadcast_object_list(received, src=0, group=self._group)
        return received[0]

    def share(self, items: Sequence[T], index: int | None = None) -> Sequence[T]:
        """This process's consecutive part of some items; the parts differ by one item at the most."""
        index = self.index if index is None else index
        return items[len(items) * index // self.num : len(items) * (index + 1) // self.num]

    def gather(self, mine: T | Exception) -> list[T]:
        """What every process has, in the order of the processes.

        An exception in place of a value is raised by all of them: none is left waiting for one that has gone.
        """
        everyone: list[Any] = [mine]
        if self.num > 1:
            everyone = [None] * self.num
            dist.all_gather_object(everyone, mine, group=self._group)
        for each in everyone:
            if isinstance(each, Exception):
                self.told = each
                raise each.with_traceback(None)  # which holds the tensors of what has failed
        return everyone

    def broken(self, error: BaseException) -> RanksError:
        """The error of a process that has left alone: from now on nobody listens to orders."""
        self.is_broken = True
        if isinstance(error, RanksError):
            return error
        if isinstance(error, RuntimeError) and "onnection" in str(error):
            return RanksError(f"process {self.index} of {self.num} has lost another one, which may have said why.")
        what = type(error).__name__ + (f": {str(error).splitlines()[0]}" if str(error) else "")
        cure = "the same command goes on"
        if "OutOfMemory" in what:
            cure = "give --activation-checkpointing, a smaller --max-new-tokens, or higher --layers, and it goes on"
        return RanksError(
            f"process {self.index} of {self.num} stopped in the middle of a step ({what}), so all of them do: {cure}."
        )

    def leave(self) -> None:
        """By the leader, at the end of a run: the followers may go. Nothing where they are not listening."""
        if not self.is_broken:
            self.order("leave")

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over the processes."""
        if self.num > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.num

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """The leader's values into everyone's tensors."""
        if self.num > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def attempt(work: Callable[[], T]) -> T | Exception:
    """The value, or the exception in its place, for `Ranks.gather`."""
    try:
        return work()
    except Exception as error:
        return error


def check_device(device: str) -> None:
    """Refuses a device that all processes would share."""
    if num_processes() > 1 and ":" in device:
        raise ConfigError(
            f"--device {device} is one device for {num_processes()} processes: leave it out, each takes its own."
        )


@cache
def joined(on_cpu: bool = False) -> Ranks:
    """The processes that a launcher started together with this one; makes their connection once.

    Args:
        on_cpu: Although there is a GPU.
    """
    if num_processes() < 2:
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu or not torch.cuda.is_available(), timeout=PATIENCE)
    if state.process_index > 0:  # a warning is said once
        logging.getLogger("autolayer").setLevel(logging.ERROR)
    return Ranks(state.process_index, state.num_processes)
