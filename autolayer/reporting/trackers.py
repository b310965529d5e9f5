"""Writes the metrics of every arm to TensorBoard, Weights & Biases, Trackio or MLflow (`--track`).

Each arm is a run of one group, which is named after the run folder. The callbacks of transformers are not used: they
belong to one training from step 0 to its end, and an arm is trained in many short ones, which interruptions repeat.
"""

import contextlib
import importlib.util
import io
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autolayer.core.errors import ConfigError
from autolayer.core.run_folder import TENSORBOARD

PROJECT = "autolayer"
"""Name of the project or experiment, unless the tracker's own environment variable gives another."""


class Tracker(ABC):
    """One run of a tracker, open for one arm.

    Args:
        folder: The run folder.
        name: Name of the arm.
        settings: What is shown as the run's configuration.
        run: What `run` was when an earlier process opened the same run; None for a new one.
    """

    run: str
    """Identifies the run, so that a later process goes on with it."""

    @abstractmethod
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run: str | None) -> None: ...

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a training step."""

    @abstractmethod
    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the completions of a step as a table, if the tracker has tables."""

    @abstractmethod
    def close(self) -> None:
        """Sends what has not been sent. The run may be opened again."""


class TensorBoard(Tracker):
    """Writes event files to tensorboard/ARM in the run folder."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = name
        self._writer = SummaryWriter(folder / TENSORBOARD / name)
        if run is None:
            self._writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing: TensorBoard has no tables."""

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class WeightsAndBiases(Tracker):
    """Writes a run of Weights & Biases, beside a run that the caller may have open."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run: str | None) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = run or uuid.uuid4().hex[:16]
        self._wandb = wandb
        # Without a limit the end of every arm waits for a dead network; older versions have none.
        limit = (
            {"finish_timeout": 120, "finish_timeout_raises": True}
            if hasattr(wandb.Settings(), "finish_timeout")
            else {}
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=folder.name, name=name, id=self.run, resume="allow",
            config=dict(settings), dir=str(folder), reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", **limit),
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(metrics), step=step)

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.log_table`."""
        columns = list(rows[0])
        table = self._wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self._run.log({"completions": table}, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


class Trackio(Tracker):
    """Writes a run of Trackio."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run: str | None) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = run or f"{folder.name} {name}"  # Trackio knows a run by its name alone
        self._trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):  # it says much for every arm
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=self.run, group=folder.name,
                config=dict(settings), resume="allow", embed=False,
            )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(metrics), step=step)

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.log_table`."""
        import pandas

        self._run.log({"completions": self._trackio.Table(dataframe=pandas.DataFrame(rows))}, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


@contextlib.contextmanager
def _short_waits() -> Iterator[None]:
    """Makes MLflow give a server up after a minute instead of many, unless the user has set how long to wait."""
    waits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    added = {name: value for name, value in waits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class MLflow(Tracker):
    """Writes a run of an MLflow experiment, with the group as a tag."""

    @_short_waits()
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run: str | None) -> None:
        from mlflow import MlflowClient, entities  # pyright: ignore[reportMissingImports]

        self._client, self._metric = MlflowClient(), entities.Metric
        if run is None:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            run = self._client.create_run(number, run_name=name, tags={"group": folder.name}).info.run_id
            for key, value in settings.items():
                self._client.log_param(run, key, value)
        self.run = str(run)
        self._client.update_run(self.run, status="RUNNING")

    @_short_waits()
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.run, [self._metric(name, value, now, step) for name, value in metrics.items()])

    @_short_waits()
    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker.log_table`."""
        columns = {name: [row.get(name) for row in rows] for name in rows[0]}
        self._client.log_table(self.run, columns, f"completions/step-{step:06d}.json")

    @_short_waits()
    def close(self) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self.run)


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""Maps the values of --track, which are also the names of the packages."""


def check_tracker(name: str) -> None:
    """Refuses a tracker that cannot be used, before anything is loaded."""
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--track {name} needs the package {name}, which is not installed: `pip install {name}`.")
    if name == "wandb" and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb  # pyright: ignore[reportMissingImports]

        if not wandb.login(prompt=False):
            raise ConfigError(
                "--track wandb cannot send anything, because wandb is not logged in: run `wandb login`, or set "
                "WANDB_MODE=offline and send the runs later by `wandb sync`."
            )
