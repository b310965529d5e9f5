"""What the user sees while a run goes on: a bar per stage on stderr, and one line when a stage is finished.

Stages may be nested (a rung inside the search). Where stderr is no terminal, plain lines come at most every ten
seconds, so that a log file stays readable. rich is imported when the first stage starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from autolayer.core.formatting import format_seconds

if TYPE_CHECKING:
    import rich.progress


def num_processes() -> int:
    """How many processes a launcher started together with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def speaks() -> bool:
    """False in all but the first of these processes: a message is said once."""
    return num_processes() < 2 or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def only_stderr() -> Iterator[None]:
    """Sends what libraries and their child processes print to stderr: stdout is for the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


class Stage:
    """One running stage. `advance` it; the last note becomes part of its closing line."""

    def __init__(self, name: str, total: float | None) -> None:
        self.name, self.total = name, total
        self.completed, self.note = 0.0, ""
        self.start = time.monotonic()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Counts work as done.

        Args:
            amount: Work done since the last call, in the units of the stage's total. 0 only changes the note.
            note: What is worth knowing now, in a few words.
        """
        self.completed += amount
        self.note = note or self.note
        self._show()

    def _show(self) -> None:
        pass

    def _state(self) -> str:
        """'40% after 35 s, about 52 s left: layer 3 leads'."""
        spent = time.monotonic() - self.start
        text = f"after {format_seconds(spent)}"
        if self.total and self.completed:
            share = min(self.completed / self.total, 1.0)
            text = f"{share:.0%} {text}, about {format_seconds(spent / share - spent)} left"
        return f"{text}: {self.note}" if self.note else text


class Progress:
    """Shows stages on stderr.

    Example:
        with progress.stage("calibrate", total=64) as stage:
            for batch in batches:
                stage.advance(len(batch), note="pass rate 41%")
    """

    def __init__(self, *, stream: TextIO | None = None, every: float = 10.0) -> None:
        """Shows on `stream` (default: stderr); without a terminal at most one line in `every` seconds."""
        self._stream, self._every = stream, every
        self._depth = 0
        self._bars: rich.progress.Progress | None = None

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """Shows a stage while the block runs, and its closing line afterwards.

        Args:
            name: Its name, as in the log.
            total: The work to do, in any unit; None where nobody knows.
        """
        stage = self._open(name, total)
        self._depth += 1
        outcome = "stopped after"
        try:
            yield stage
            outcome = "done in"
        finally:
            self._depth -= 1
            self._close(stage)
            note = f": {stage.note}" if stage.note else ""
            self.say(f"{'  ' * self._depth}{name}  {outcome} {format_seconds(time.monotonic() - stage.start)}{note}")
            if self._depth == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None

    def say(self, text: str) -> None:
        """Prints a line without breaking the bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream or sys.stderr, flush=True)

    def _open(self, name: str, total: float | None) -> Stage:
        if not (self._stream or sys.stderr).isatty():
            return _PlainStage(name, total, self)
        bars = self._bars or _bars(self._stream)
        if self._bars is None:
            bars.start()
            self._bars = bars
        return _BarStage("  " * self._depth + name, total, bars)

    def _close(self, stage: Stage) -> None:
        if isinstance(stage, _BarStage):
            stage.bars.remove_task(stage.task)


class Silent(Progress):
    """Shows nothing: for library use."""

    def say(self, text: str) -> None:
        pass

    def _open(self, name: str, total: float | None) -> Stage:
        return Stage(name, total)


class _PlainStage(Stage):
    def __init__(self, name: str, total: float | None, progress: Progress) -> None:
        super().__init__(name, total)
        self._progress, self._last = progress, self.start

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._progress._every:
            self._last = now
            self._progress.say(f"{self.name}  {self._state()}")


class _BarStage(Stage):
    def __init__(self, name: str, total: float | None, bars: rich.progress.Progress) -> None:
        super().__init__(name, total)
        self.bars, self.task = bars, bars.add_task(name, total=total, note="")

    def _show(self) -> None:
        self.bars.update(self.task, completed=self.completed, note=self.note)


def _bars(stream: TextIO | None) -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream or sys.stderr),
        transient=True,  # the closing line stays instead
        refresh_per_second=4,
        speed_estimate_period=600,  # one RL step can take a minute
    )
