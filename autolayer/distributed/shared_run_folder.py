"""The run folder of several processes: rank 0 reads and writes its files, and every rank gets the content or the error.

Other machines may see no folder, or see a file late. Only training/checkpoints.py reads on every rank.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from autolayer.core.run_folder import RunFolder
from autolayer.distributed.process_group import ProcessGroup

P = ParamSpec("P")
T = TypeVar("T")


def _on_rank_0(method: Callable[P, T]) -> Callable[P, T]:
    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        folder = cast(SharedRunFolder, args[0])
        return folder.process_group.on_rank_0(lambda: method(*args, **kwargs))

    return call


class SharedRunFolder(RunFolder):
    """A `RunFolder` whose methods must be called on every rank; an error on rank 0 is raised on every rank."""

    def __init__(self, path: str | Path, process_group: ProcessGroup) -> None:
        super().__init__(path)
        self.process_group = process_group

    read = _on_rank_0(RunFolder.read)
    has = _on_rank_0(RunFolder.has)
    write = _on_rank_0(RunFolder.write)
    start_or_resume = _on_rank_0(RunFolder.start_or_resume)
    abandon = _on_rank_0(RunFolder.abandon)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `RunFolder.locked`; rank 0 holds the lock."""
        with ExitStack() as lock:
            self.process_group.on_rank_0(lambda: lock.enter_context(RunFolder.locked(self)))
            yield
