"""Shows the progress of a run: a live line for the running stage, which imports rich, and one line when it ends."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

from autolayer.core.progress import Progress, Stage
from autolayer.core.shown_text import visible

if TYPE_CHECKING:
    import rich.progress


class TerminalProgress(Progress):
    """Shows the stages of a run on stderr, or on another stream.

    A terminal has live bars. A notebook or a file gets a line when a stage ends, and in between at most one line in
    `every` seconds; a stage that tells nothing gets one after `quiet` seconds.

    Example:
        autolayer.pick(model="tiny", task="math:arith", progress=autolayer.TerminalProgress())
    """

    def __init__(self, *, stream: TextIO | None = None, every: float = 10.0, quiet: float = 60.0) -> None:
        super().__init__()
        self.stream, self.every, self.quiet = stream, every, quiet
        self._open: list[Stage] = []
        self._ended = threading.Event()
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[Stage, rich.progress.TaskID] = {}
        self._last_line = time.monotonic()

    def open(self, stage: Stage) -> None:
        """Shows a bar, if the stream is a terminal."""
        self._last_line = stage.start
        if (self.stream or sys.stderr).isatty():
            if self._bars is None:
                self._bars = _make_bars(self.stream)
                self._bars.start()
            self._tasks[stage] = self._bars.add_task("  " * self.depth + stage.name, total=stage.total, note="")
        else:
            self._open.append(stage)
            if len(self._open) == 1:
                self._ended = threading.Event()
                threading.Thread(target=self._keep_telling, args=(self._ended,), daemon=True).start()

    def _keep_telling(self, ended: threading.Event) -> None:
        while not ended.wait(max(self._last_line + self.quiet - time.monotonic(), 0.01)):
            if time.monotonic() >= self._last_line + self.quiet:
                self._last_line = time.monotonic()
                for stage in self._open[-1:]:
                    self.say(f"{stage.name}  {stage.state()}")

    def show(self, stage: Stage) -> None:
        """Moves the bar of a stage, or prints a line if the last one is long ago."""
        if self._bars is not None:
            self._bars.update(self._tasks[stage], completed=stage.completed, note=stage.note)
        elif time.monotonic() - self._last_line >= self.every:
            self._last_line = time.monotonic()
            self.say(f"{stage.name}  {stage.state()}")

    def close(self, stage: Stage) -> None:
        """Removes the bar of a stage; its closing line stays."""
        if stage in self._open:
            self._open.remove(stage)
            if not self._open:
                self._ended.set()
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(stage))

    def say(self, text: str) -> None:
        """Prints a line without breaking the bars."""
        text = visible(text)
        if self._bars is None:
            print(text, file=self.stream or sys.stderr, flush=True)
            return
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        if self.depth == 0:
            self._bars.stop()
            self._bars = None


def _make_bars(stream: TextIO | None) -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream or sys.stderr),
        transient=True,  # the closing line replaces the bar
        refresh_per_second=4,
        speed_estimate_period=600,  # one RL step can take a minute
    )
