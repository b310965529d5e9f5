"""The state that all stages of a run share, and the rule by which each stage runs once and writes a file.

calibrate writes calibration.json, probe writes probe.json, search writes search.json and study.db, train writes arms/.
A stage reads only the files of earlier stages, so an interrupted run resumes where it stopped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autolayer.core.config import Config
from autolayer.core.layer_set import Layers
from autolayer.core.progress import Progress
from autolayer.core.run_folder import RunFolder
from autolayer.search.run_once import run_once_across_workers
from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The state that all stages of one run share; `setup.setup` creates it."""

    config: Config
    bench: Workbench
    candidates: tuple[int, ...]
    progress: Progress
    trained_layers: Layers
    """The layers that `train` trains; `pick` chooses among the candidates instead."""
    signature: str
    started: float
    """`time.monotonic()` when the run began, for the deadline."""
    changed_files: tuple[str, ...] = ()
    """Kinds of the user's files (reward, data, task) that were edited during the run."""

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.bench.folder

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turns errors that the content of a run folder's file causes into a RunFolderError about that file."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.folder.damaged(name, f"{type(error).__name__}: {error}") from error

    def run_once(self, name: str, work: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Does some work on every rank unless `is_done`; with --storage, one worker does it and others wait.

        The name of the work is unique in a run. `is_done` is called on rank 0, and returns True if an earlier call or
        another worker has done the work.
        """
        storage, process_group = self.config.storage, self.bench.process_group
        if storage is not None:
            key = f"{self.signature} {name}"
            process_group.call_from_rank_0(
                lambda work_on_all_ranks: run_once_across_workers(storage, key, work_on_all_ranks, is_done), work
            )
        elif not process_group.on_rank_0(is_done):
            work()
