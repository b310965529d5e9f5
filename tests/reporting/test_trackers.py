"""What the trackers' own readers find, and a tracker that is not installed."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from autolayer.core import config
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.pipeline.defaults import check_names
from autolayer.reporting.trackers import TRACKERS

NAME, SETTINGS = "layer-2_rate-0.001_seed-0", {"layers": "2", "model": "tiny"}
TABLE = [{"prompt": "1+1=", "completion": "2", "reward": 1.0}]


def log_in_two_processes(tracker: str, folder: Path) -> str:
    run = None
    for steps in ([1, 2], [3, 4]):
        opened = TRACKERS[tracker](folder, NAME, SETTINGS, run)
        for step in steps:
            opened.log(step, {"reward": step / 10, "completions/mean_length": 7.0})
        opened.log_table(steps[-1], TABLE)
        opened.close()
        assert run in (None, opened.run)
        run = opened.run
    assert run is not None
    return run


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_tracker_is_refused_with_the_command(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{tracker}, which is not installed: `pip install {tracker}`"):
        check_names(Config(model="tiny", task="math:arith", track=f"{tracker},wandb"))
    check_names(Config(model="tiny", task="math:arith"))
    assert tuple(TRACKERS) == config.TRACKERS


def test_tensorboard_reads_every_point_once(tmp_path: Path) -> None:
    reader: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_in_two_processes("tensorboard", tmp_path)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard" / NAME))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"reward", "completions/mean_length"}
    assert [point.step for point in events.Scalars("reward")] == [1, 2, 3, 4]
    assert [point.value for point in events.Scalars("reward")] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_mlflow_waits_a_short_time_for_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    seen = []
    client = mock.Mock()
    client.set_terminated.side_effect = lambda run: seen.append([os.environ.get(name) for name in names])
    monkeypatch.setitem(sys.modules, "mlflow", mock.Mock(MlflowClient=lambda: client))
    monkeypatch.setenv(names[0], "5")  # of the user
    monkeypatch.delenv(names[1], raising=False)
    TRACKERS["mlflow"](tmp_path, NAME, SETTINGS, "run").close()
    assert seen == [["5", "20"]] and names[1] not in os.environ


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_ARTIFACT_ROOT": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "group"


@pytest.mark.slow
def test_mlflow_has_one_run_with_every_point_once(offline: Path) -> None:
    client: Any = pytest.importorskip("mlflow").MlflowClient()
    run = client.get_run(log_in_two_processes("mlflow", offline))
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "reward")] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4),
    ]  # fmt: skip
    assert run.data.tags["group"] == "group" and run.data.params["layers"] == "2" and run.info.run_name == NAME
    assert {file.path for file in client.list_artifacts(run.info.run_id, "completions")} == {
        "completions/step-000002.json", "completions/step-000004.json",
    }  # fmt: skip


@pytest.mark.slow
def test_wandb_goes_on_with_the_same_run(offline: Path) -> None:
    pytest.importorskip("wandb")
    offline.mkdir()
    run = log_in_two_processes("wandb", offline)
    written = [path for path in (offline / "wandb").glob("offline-run-*/*.wandb")]
    assert len(written) == 2 and all(run in path.name for path in written)


@pytest.mark.slow
def test_trackio_has_one_run_with_every_point_once(offline: Path) -> None:
    storage: Any = pytest.importorskip("trackio.sqlite_storage")
    run = log_in_two_processes("trackio", offline)
    logged = storage.SQLiteStorage.get_logs("autolayer", run)
    assert run == f"group {NAME}" and [row["step"] for row in logged if "completions" in row] == [2, 4]
    assert [(row["step"], row["reward"]) for row in logged if "reward" in row] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4),
    ]  # fmt: skip
