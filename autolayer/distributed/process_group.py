"""The processes of one run, started by `torchrun` or `accelerate launch` (SPMD: all of them run the same program).

Every rank loads the model and runs every stage. Each rank samples and trains on its share of a batch; rollouts are
gathered and gradients averaged, so all ranks hold the same weights and decide the same. Rank 0 alone writes files,
talks to Optuna and prints: what only it can know (a file, the time, the next run of the race) is broadcast.

All objects travel by one operation (`ProcessGroup._exchange`), which also carries exceptions. A rank that fails
announces its exception there, and the other ranks raise it at their next exchange instead of waiting for that rank.

Gradients are averaged when the optimizer steps. DDP would overlap that with the backward pass, and for one layer there
is nothing to gain: a hundredth of the model is sent.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from autolayer.core.errors import AutolayerError, ConfigError, LoneRankError, ProcessGroupError, TrainingError
from autolayer.core.launch import num_processes

TIMEOUT = timedelta(days=30)
"""Ranks wait for rank 0 while it waits for workers on other machines."""

_EVERYWHERE = "raised_on_all_ranks"
"""Attribute of an exception that all ranks raise."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Returned:
    """The value that ends `ProcessGroup.call_from_rank_0`."""

    value: Any


class ProcessGroup:
    """The ranks of a run. With one rank, every method does its work in place and sends nothing.

    Args:
        rank: This process, counted from 0.
        world_size: Number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.passes_are_collective = False
        """True if a forward pass needs all ranks (FSDP), so that a rank that fails alone cannot report it to others."""
        self._lone_error: LoneRankError | None = None
        self._on_rank_0_alone = False
        """Rank 0 is inside work that the other ranks do not run: nothing is exchanged."""
        # Objects travel by way of the host, whatever moves gradients.
        self._gloo: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if world_size > 1 else None

    @property
    def is_rank_0(self) -> bool:
        """True if this process is the one that writes files, talks to Optuna and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this rank's consecutive part of some items; the parts differ by one item at most."""
        start, stop = (len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return items[start:stop]

    def gather(self, mine: T | Exception) -> list[T]:
        """Returns every rank's value, in the order of the ranks.

        Raises:
            Exception: The first that a rank gave in place of a value (`attempt`), on all ranks.
        """
        return self._exchange(mine)

    def broadcast(self, value: T) -> T:
        """Returns rank 0's value on every rank."""
        return self._exchange(value if self.is_rank_0 else None)[0]

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Runs the work on rank 0 and returns its value, or raises its exception, on every rank."""
        with self._alone(True):
            value = attempt(work) if self.is_rank_0 else None
        return self._exchange(value)[0]

    def call_from_rank_0(self, program: Callable[[Callable[..., Any]], T], work: Callable[..., Any]) -> T:
        """Runs a program on rank 0, and on every rank the `work` that it calls.

        Args:
            program: Gets a function that runs `work` on every rank and returns rank 0's value.
            work: Takes picklable arguments. What it raises is raised on all ranks; the program may catch it.

        Returns:
            What the program returns on rank 0, on every rank.
        """

        def call(*arguments: Any) -> Any:
            with self._alone(False):
                return run(self.broadcast(arguments))

        def run(arguments: tuple[Any, ...]) -> Any:
            with self.failing_together():
                return work(*arguments)

        if self.world_size == 1:
            return program(work)
        if self.is_rank_0:
            return self.on_rank_0(lambda: _Returned(program(call))).value
        while not isinstance(asked := self._exchange(None)[0], _Returned):
            try:
                run(asked)
            except Exception as error:
                if not _is_everywhere(error):
                    raise
        return asked.value

    @contextlib.contextmanager
    def failing_together(self, *, passes_are_collective: bool = False) -> Iterator[None]:
        """Raises an exception of one rank on all ranks: at their next exchange, or at the end of the block.

        Args:
            passes_are_collective: Whether a forward pass inside needs all ranks.

        Raises:
            LoneRankError: The other ranks may wait for this one in a pass and cannot be told. The launcher ends them
                when this process ends.
        """
        try:
            yield
        except Exception as error:
            if self.world_size == 1 or _is_everywhere(error) or isinstance(error, LoneRankError):
                raise
            if not (self.passes_are_collective or passes_are_collective):
                self._exchange(error)
            if not isinstance(error, TrainingError):  # all ranks find that one in their averaged gradients
                raise self._lone(error) from error
            setattr(error, _EVERYWHERE, True)
            raise
        self._exchange(None)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over the ranks."""
        if self.world_size > 1:
            self._exchange(None)  # a rank that has failed before it got here is not waited for
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world_size

    @contextlib.contextmanager
    def _alone(self, alone: bool) -> Iterator[None]:
        before, self._on_rank_0_alone = self._on_rank_0_alone, alone
        try:
            yield
        finally:
            self._on_rank_0_alone = before

    def _exchange(self, mine: Any) -> list[Any]:
        """Gathers a value, or the exception in its place, which all other ranks raise."""
        if self._lone_error is not None:
            raise self._lone_error
        everyone: list[Any] = [mine]
        if self.world_size > 1 and not self._on_rank_0_alone:
            everyone = [None] * self.world_size
            try:
                dist.all_gather_object(everyone, self._portable(mine), group=self._gloo)
            except RuntimeError as error:  # of gloo
                raise self._lone(error) from error
            if isinstance(mine, Exception):
                everyone[self.rank] = mine  # with its traceback
        for each in everyone:
            if isinstance(each, Exception):
                setattr(each, _EVERYWHERE, True)
                raise each
        return everyone

    def _portable(self, value: Any) -> Any:
        """An exception as other ranks are to raise it: those of libraries may not survive pickling."""
        if not isinstance(value, Exception):
            return value
        if isinstance(value, AutolayerError | torch.OutOfMemoryError):
            return value
        return ProcessGroupError(f"process {self.rank} of {self.world_size} failed ({_first_line(value)}).")

    def _lone(self, error: Exception) -> LoneRankError:
        """Returns the error of a rank that ends alone, which every later exchange raises again."""
        if isinstance(error, LoneRankError):
            return error
        what = f"failed ({_first_line(error)}), which ends all of them: rerun the same command to resume."
        if isinstance(error, RuntimeError) and "onnection" in str(error):
            what = "has lost another process, which may have said why."
        elif isinstance(error, torch.OutOfMemoryError):
            what = (
                f"failed ({_first_line(error)}), which ends all of them: give --activation-checkpointing, a smaller "
                "--max-new-tokens or higher --layers, and rerun to resume."
            )
        self._lone_error = LoneRankError(f"process {self.rank} of {self.world_size} {what}")
        return self._lone_error


def attempt(work: Callable[[], T]) -> T | Exception:
    """Returns the value, or the exception in its place, for `ProcessGroup.gather`."""
    try:
        return work()
    except Exception as error:
        return error


def _is_everywhere(error: Exception) -> bool:
    return getattr(error, _EVERYWHERE, False)


def _first_line(error: Exception) -> str:
    return type(error).__name__ + (f": {str(error).splitlines()[0]}" if str(error) else "")


def check_device(device: str) -> None:
    """Refuses a device that all processes would use together.

    Raises:
        ConfigError: `device` names one of several devices, and there are several processes.
    """
    if num_processes() > 1 and ":" in device:
        raise ConfigError(
            f"--device {device} is one device for {num_processes()} processes: leave it out, each takes its own."
        )


@cache
def join_process_group(on_cpu: bool = False) -> ProcessGroup:
    """Returns the group of the processes that a launcher started together; connects them once.

    Args:
        on_cpu: Although there is a GPU.
    """
    if num_processes() < 2:
        return ProcessGroup()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu or not torch.cuda.is_available(), timeout=TIMEOUT)
    if state.process_index > 0:  # rank 0 says each warning
        logging.getLogger("autolayer").setLevel(logging.ERROR)
    atexit.register(dist.destroy_process_group)  # gloo's threads abort a process that ends before them
    return ProcessGroup(state.process_index, state.num_processes)
