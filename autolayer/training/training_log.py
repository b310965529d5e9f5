"""The training log: what can be watched of the training of arms, in completions.parquet and in trackers.

No result depends on it. What cannot be written is said once, and the run goes on.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.run_folder import COMPLETIONS, RunFolder
from autolayer.reporting.trackers import TRACKERS, Tracker
from autolayer.rollouts.rollouts import Rollouts
from autolayer.training.checkpoints import Checkpoints
from autolayer.training.completions import add_completions, completion_rows

logger = logging.getLogger(__name__)


class TrainingLog:
    """Logs the training of arms; only rank 0 calls it."""

    def __init__(self, config: Config, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.folder, self.tokenizer = config, RunFolder(folder), tokenizer
        self._rows: list[dict[str, Any]] = []
        self._failed: set[str] = set()
        self._open: dict[str, tuple[str, Tracker]] = {}
        """By tracker, the key of the arm whose run is open, and that run."""

    def keep_completions(self, arm: Arm, steps: Sequence[Rollouts]) -> None:
        """Keeps completions of the steps that follow the arm's, before their checkpoint is saved.

        After an interruption the steps are repeated, and their completions replace the old ones.
        """

        def keep() -> None:
            self._rows = completion_rows(arm, steps, self.tokenizer)
            add_completions(self.folder.path, self._rows, is_shared=self.config.storage is not None)

        self._attempt(COMPLETIONS, keep)

    def track(self, arm: Arm, checkpoints: Checkpoints) -> None:
        """Sends the steps up to the arm's checkpoint that a tracker does not have yet; what it has is recorded.

        The steps are read from the history, so that a tracker which is chosen later gets all of them. The record is
        apart from the arm's checkpoints: an arm that is trained again after their deletion has the same points.
        """
        for name in self.config.trackers:
            self._attempt(f"--track {name}", partial(self._track, name, arm, checkpoints))

    def close(self) -> None:
        """Closes the open run of every tracker."""
        for name in tuple(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        if name in self._open:
            self._attempt(f"--track {name}", self._open.pop(name)[1].close)

    def _track(self, name: str, arm: Arm, checkpoints: Checkpoints) -> None:
        file = f"tracked/{arm.key}.json"
        tracked = self.folder.read(file) or {}
        known = tracked.get(name, {})
        if name not in self._open or self._open[name][0] != arm.key:
            self._close(name)
            run = TRACKERS[name](self.folder.path, arm.key, self._settings(arm), known.get("run"))
            self._open[name] = arm.key, run
        tracker, since = self._open[name][1], known.get("step", 0)
        history = checkpoints.history(arm)
        metrics = [*history.metrics, *[{}] * arm.step]

        def record(step: int) -> None:
            self.folder.write(file, {**tracked, name: {"run": tracker.run, "step": step}})

        # Recorded first: if the process is killed now, the tracker lacks these points instead of having them twice.
        record(max(since, arm.step))
        for step in range(since + 1, arm.step + 1):
            try:
                tracker.log(step, {"reward": fmean(history.rewards[step - 1]), **metrics[step - 1]})
            except Exception:
                record(step - 1)  # the next process goes on from here
                raise
        if rows := [row for row in self._rows if row["arm"] == arm.key and row["step"] == arm.step > since]:
            tracker.log_table(arm.step, rows)

    def _settings(self, arm: Arm) -> dict[str, Any]:
        about = {name: getattr(self.config, name) for name in ("model", "algorithm", "prompts_per_step", "group_size")}
        arm_is = {"layers": arm.name, "learning_rate": arm.learning_rate, "seed": arm.seed}
        return {**arm_is, "task": self.config.task_name, **about}

    def _attempt(self, what: str, work: Callable[[], None]) -> None:
        if what in self._failed:
            return
        try:
            work()
        except Exception as error:
            self._failed.add(what)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            logger.warning("%s stops here, and the run goes on without it (%s).", what, reason)
