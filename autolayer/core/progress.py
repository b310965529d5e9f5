"""Progress of a run, as the stages report it. `Progress` shows nothing; `reporting.progress` shows it."""

import contextlib
import time
from collections.abc import Iterator

from autolayer.core.formatting import format_seconds


class Stage:
    """A running stage. The last note becomes part of its closing line."""

    def __init__(self, name: str, total: float | None, progress: "Progress | None" = None) -> None:
        self.name, self.total = name, total
        self.completed, self.note = 0.0, ""
        self.start = time.monotonic()
        self._progress = progress or Progress()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Records work as done, in the units of the stage's total, and a few words about the current state."""
        self.completed += amount
        self.note = note or self.note
        self._progress.show(self)

    def state(self) -> str:
        """Returns share, times and note: '40% after 35 s, about 52 s left: layer 3 leads'."""
        spent = time.monotonic() - self.start
        text = f"after {format_seconds(spent)}"
        if self.total and self.completed:
            share = min(self.completed / self.total, 1.0)
            text = f"{share:.0%} {text}, about {format_seconds(spent / share - spent)} left"
        return f"{text}: {self.note}" if self.note else text


class Progress:
    """Opens stages, which may be nested (a rung inside the search). Subclasses override how they are shown.

    Example:
        with progress.stage("calibrate", total=64) as stage:
            for batch in batches:
                stage.advance(len(batch), note="pass rate 41%")
    """

    def __init__(self) -> None:
        self.depth = 0
        """Number of open stages."""

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """Opens a stage for the block and prints a closing line with its time. `total` is its work, in any unit."""
        stage = Stage(name, total, self)
        self.open(stage)
        self.depth += 1
        outcome = "stopped after"
        try:
            yield stage
            outcome = "done in"
        finally:
            self.depth -= 1
            self.close(stage)
            note = f": {stage.note}" if stage.note else ""
            self.say(f"{'  ' * self.depth}{name}  {outcome} {format_seconds(time.monotonic() - stage.start)}{note}")

    def open(self, stage: Stage) -> None:
        """Starts showing a stage."""

    def show(self, stage: Stage) -> None:
        """Shows the new state of a stage."""

    def close(self, stage: Stage) -> None:
        """Stops showing a stage."""

    def say(self, text: str) -> None:
        """Prints one line."""
