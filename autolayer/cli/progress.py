"""Progress on stderr: one bar per stage, and one line when a stage ends.

If stderr is not a terminal, plain lines are printed at most every ten seconds, so that a log file stays readable. rich
is imported when the first bar is shown.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from autolayer.core.progress import Progress, Stage

if TYPE_CHECKING:
    import rich.progress


class TerminalProgress(Progress):
    """Shows the progress of stages on a stream."""

    def __init__(self, *, stream: TextIO | None = None, every: float = 10.0) -> None:
        """Creates the progress display; nothing is shown before the first stage.

        Args:
            stream: Stream to print to; default: stderr.
            every: Seconds between two lines of one stage if the stream is not a terminal.
        """
        super().__init__()
        self.stream, self.every = stream, every
        self._bars: rich.progress.Progress | None = None

    def say(self, text: str) -> None:
        """Prints a line without breaking the bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            if self.depth == 0:
                self._bars.stop()
                self._bars = None
        else:
            print(text, file=self.stream or sys.stderr, flush=True)

    def open(self, name: str, total: float | None) -> Stage:
        """Shows a bar on a terminal, and plain lines elsewhere."""
        if not (self.stream or sys.stderr).isatty():
            return _PlainStage(name, total, self)
        if self._bars is None:
            self._bars = _make_bars(self.stream)
            self._bars.start()
        return _BarStage("  " * self.depth + name, total, self._bars)

    def close(self, stage: Stage) -> None:
        """Removes the bar of a stage; its closing line stays."""
        if isinstance(stage, _BarStage):
            stage.bars.remove_task(stage.task)


class _PlainStage(Stage):
    def __init__(self, name: str, total: float | None, progress: TerminalProgress) -> None:
        super().__init__(name, total)
        self._progress, self._last = progress, self.start

    def show(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._progress.every:
            self._last = now
            self._progress.say(f"{self.name}  {self.state()}")


class _BarStage(Stage):
    def __init__(self, name: str, total: float | None, bars: rich.progress.Progress) -> None:
        super().__init__(name, total)
        self.bars, self.task = bars, bars.add_task(name, total=total, note="")

    def show(self) -> None:
        self.bars.update(self.task, completed=self.completed, note=self.note)


def _make_bars(stream: TextIO | None) -> rich.progress.Progress:
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
        transient=True,  # the closing line replaces the bar
        refresh_per_second=4,
        speed_estimate_period=600,  # one RL step can take a minute
    )
