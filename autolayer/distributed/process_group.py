"""The processes of one run, started by `torchrun` or `accelerate launch` (SPMD: all of them run the same program).

Each rank samples and trains on its share of a batch. Rollouts are gathered and gradients averaged, so all ranks hold
the same weights and make the same decisions. Rank 0 alone writes files, talks to Optuna and prints, and it broadcasts
what it alone knows. All objects are sent by one operation (`ProcessGroup._exchange`), exceptions too: a rank that fails
sends its own, and the other ranks raise it at their next exchange instead of waiting.
"""

import atexit
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from autolayer.core.errors import AutolayerError, ConfigError, LoneRankError, ProcessGroupError, TrainingError
from autolayer.core.launch import check_variables, num_processes

TIMEOUT = timedelta(days=30)
"""Longest wait for another rank; it is long because rank 0 may wait for workers on other machines."""

_ON_ALL_RANKS = "raised_on_all_ranks"
"""Attribute that marks an exception which all ranks raise."""

_WRAPPERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism of accelerate",
}
"""Maps the environment variables of `accelerate launch` that wrap a model to what they ask for."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Returned:
    """The value of `call_from_rank_0`'s program; the other ranks stop working when they get it."""

    value: Any


class ProcessGroup:
    """The ranks of a run. With one rank, every method works locally and sends nothing."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.passes_need_all_ranks = False
        """True if a forward pass needs all ranks (FSDP); a rank that fails in one cannot tell the others."""
        self._fatal_error: LoneRankError | None = None
        self._only_rank_0_works = False
        """True while the other ranks wait for work of rank 0; it then exchanges nothing with them."""
        # Objects are sent from host memory by gloo; gradients by the default backend, such as NCCL.
        self._gloo: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if world_size > 1 else None

    @property
    def is_rank_0(self) -> bool:
        """True if this process is the one that writes files, talks to Optuna and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this rank's consecutive part of `items`; the parts of two ranks differ in length by at most one."""
        start, stop = (len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return items[start:stop]

    def gather(self, mine: T | Exception) -> list[T]:
        """Returns the values of all ranks, in the order of the ranks. Call it on every rank.

        If a rank passes an exception instead of a value (see `attempt`), all ranks raise the first of them.
        """
        return self._exchange(mine)

    def broadcast(self, value: T) -> T:
        """Returns the value of rank 0 on every rank. Call it on every rank; the values of the others are ignored."""
        return self._exchange(value if self.is_rank_0 else None)[0]

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Runs some work on rank 0 alone. Call it on every rank; each returns the value, or raises the exception."""
        with self._only_rank_0(True):
            value = attempt(work) if self.is_rank_0 else None
        return self._exchange(value)[0]

    def call_from_rank_0(self, program: Callable[[Callable[..., Any]], T], work: Callable[..., Any]) -> T:
        """Runs a program on rank 0 that can call `work` on every rank, and returns its value. Call it on every rank.

        The race of the search is such a program: Optuna runs on rank 0, and training on all ranks.

        Args:
            program: Called with a function that runs `work` on every rank, and returns the value of rank 0.
            work: The function; its arguments must be picklable. An exception is raised on all ranks, where the program
                may catch it.
        """

        def call(*arguments: Any) -> Any:
            with self._only_rank_0(False):
                return run(self.broadcast(arguments))

        def run(arguments: tuple[Any, ...]) -> Any:
            with self.failing_together():
                return work(*arguments)

        if self.world_size == 1:
            return program(work)
        if self.is_rank_0:
            return self.on_rank_0(lambda: _Returned(program(call))).value
        while not isinstance(received := self._exchange(None)[0], _Returned):
            try:
                run(received)
            except Exception as error:
                if not _is_on_all_ranks(error):
                    raise
        return received.value

    @contextlib.contextmanager
    def failing_together(self, *, passes_need_all_ranks: bool = False) -> Iterator[None]:
        """Makes all ranks raise an exception that one rank raises in the block. Enter it on every rank.

        The other ranks raise it at their next exchange, at the latest at the end of the block. With
        `passes_need_all_ranks` they may wait in a forward pass of the block, where they cannot be told. This rank then
        raises a `LoneRankError`, and the launcher ends the others when this process ends.
        """
        try:
            yield
        except Exception as error:
            if self.world_size == 1 or _is_on_all_ranks(error) or isinstance(error, LoneRankError):
                raise
            if not (self.passes_need_all_ranks or passes_need_all_ranks):
                self._exchange(error)
            if not isinstance(error, TrainingError):  # the gradient is averaged, so all ranks raise this one
                raise self._fatal(error) from error
            setattr(error, _ON_ALL_RANKS, True)
            raise
        self._exchange(None)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over the ranks, in place. Call it on every rank."""
        # DDP would overlap this with the backward pass, which saves nothing for one layer, a hundredth of the model.
        if self.world_size > 1:
            self._exchange(None)  # raises if a rank has failed, which all_reduce would wait for
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world_size

    @contextlib.contextmanager
    def _only_rank_0(self, works: bool) -> Iterator[None]:
        before, self._only_rank_0_works = self._only_rank_0_works, works
        try:
            yield
        finally:
            self._only_rank_0_works = before

    def _exchange(self, mine: Any) -> list[Any]:
        """Returns the values of all ranks; if a rank passes an exception instead of a value, all ranks raise it."""
        if self._fatal_error is not None:
            raise self._fatal_error
        everyone: list[Any] = [mine]
        if self.world_size > 1 and not self._only_rank_0_works:
            everyone = [None] * self.world_size
            try:
                dist.all_gather_object(everyone, self._portable(mine), group=self._gloo)
            except RuntimeError as error:  # gloo lost another process
                raise self._fatal(error) from error
            if isinstance(mine, Exception):
                everyone[self.rank] = mine  # the original has its traceback
        for each in everyone:
            if isinstance(each, Exception):
                setattr(each, _ON_ALL_RANKS, True)
                raise each
        return everyone

    def _portable(self, value: Any) -> Any:
        """Returns a value to send; the exceptions of libraries, which may not be picklable, are replaced by our own."""
        if not isinstance(value, Exception) or isinstance(value, AutolayerError | torch.OutOfMemoryError):
            return value
        return ProcessGroupError(f"process {self.rank} of {self.world_size} failed ({_first_line(value)}).")

    def _fatal(self, error: Exception) -> LoneRankError:
        """Returns the error of a rank that cannot tell the others; every later exchange raises it again."""
        if isinstance(error, LoneRankError):
            return error
        cure = "rerun the same command to resume."
        if isinstance(error, torch.OutOfMemoryError):
            cure = "give --activation-checkpointing, a smaller --max-new-tokens or higher --layers, then rerun."
        what = f"failed ({_first_line(error)}), which ends all of them: {cure}"
        if isinstance(error, RuntimeError) and "onnection" in str(error):
            what = "has lost another process, which may have said why."
        self._fatal_error = LoneRankError(f"process {self.rank} of {self.world_size} {what}")
        return self._fatal_error


def attempt(work: Callable[[], T]) -> T | Exception:
    """Returns the value of `work`, or the exception that it raises, for `ProcessGroup.gather`."""
    try:
        return work()
    except Exception as error:
        return error


def _is_on_all_ranks(error: Exception) -> bool:
    return getattr(error, _ON_ALL_RANKS, False)


def _first_line(error: Exception) -> str:
    return type(error).__name__ + (f": {str(error).splitlines()[0]}" if str(error) else "")


def check_launcher(device: str) -> None:
    """Refuses a launcher's variables or configuration that cannot work, and one device for several processes."""
    check_variables()
    wrapped = [name for variable, name in _WRAPPERS.items() if os.environ.get(variable, "").lower() in ("true", "1")]
    if wrapped:
        raise ConfigError(
            f"the launcher's configuration (`accelerate config`) asks for {wrapped[0]}, which divides or wraps the "
            "model in its own way: start with `torchrun --nproc_per_node N -m autolayer ...` or without a launcher; "
            "--shard divides a model that does not fit one device."
        )
    if num_processes() > 1 and ":" in device:
        raise ConfigError(
            f"--device {device} is one device for {num_processes()} processes: leave it out, each takes its own."
        )


@cache
def join_process_group(on_cpu: bool = False) -> ProcessGroup:
    """Returns the group of the processes that a launcher started; the first call connects them."""
    if num_processes() < 2:
        return ProcessGroup()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu or not torch.cuda.is_available(), timeout=TIMEOUT)
    if state.process_index > 0:  # rank 0 alone logs warnings
        logging.getLogger("autolayer").setLevel(logging.ERROR)
    atexit.register(dist.destroy_process_group)  # gloo's threads abort a process that ends before them
    return ProcessGroup(state.process_index, state.num_processes)
