"""The run folder of several processes: rank 0 reads and writes its files, and every rank gets the content or the error.

Other machines may not see the folder of rank 0, or see a new file late. Only checkpoints are read by every rank
(training/checkpoints.py).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from autolayer.core.run_folder import RunFolder
from autolayer.distributed.process_group import ProcessGroup


class SharedRunFolder(RunFolder):
    """A `RunFolder` whose methods must be called on every rank; an error on rank 0 is raised on every rank.

    Args:
        path: Path of the folder on the machine of rank 0.
        process_group: The ranks of the run.
    """

    def __init__(self, path: str | Path, process_group: ProcessGroup) -> None:
        super().__init__(path)
        self.process_group = process_group

    def read(self, name: str) -> dict[str, Any] | None:
        """See `RunFolder.read`."""
        return self.process_group.on_rank_0(lambda: RunFolder.read(self, name))

    def has(self, *names: str) -> bool:
        """See `RunFolder.has`."""
        return self.process_group.on_rank_0(lambda: RunFolder.has(self, *names))

    def write(self, name: str, value: dict[str, Any], *, indent: int | None = 1) -> None:
        """See `RunFolder.write`."""
        self.process_group.on_rank_0(lambda: RunFolder.write(self, name, value, indent=indent))

    @contextmanager
    def held(self) -> Iterator[None]:
        """See `RunFolder.held`; rank 0 holds the lock."""
        with ExitStack() as lock:

            def hold() -> None:
                lock.enter_context(RunFolder.held(self))

            self.process_group.on_rank_0(hold)
            yield

    def keep_only(self, name: str, value: dict[str, Any]) -> None:
        """See `RunFolder.keep_only`."""
        self.process_group.on_rank_0(lambda: RunFolder.keep_only(self, name, value))

    def give_up(self) -> None:
        """See `RunFolder.give_up`."""
        self.process_group.on_rank_0(lambda: RunFolder.give_up(self))

    def claim(self, resolved: dict[str, Any], signature: str, *, accept_changes: bool = False) -> dict[str, Any]:
        """See `RunFolder.claim`."""
        return self.process_group.on_rank_0(
            lambda: RunFolder.claim(self, resolved, signature, accept_changes=accept_changes)
        )
