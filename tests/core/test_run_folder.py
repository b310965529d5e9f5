"""A run folder belongs to one configuration, whoever starts in it and when."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autolayer.core.errors import DataError, RunFolderError
from autolayer.core.run_folder import LOCK, RunFolder
from autolayer.models.sealed_tensors import load_sealed
from autolayer.reporting.results import PickResult


def test_workers_that_start_in_a_folder_at_one_moment_all_get_it(tmp_path: Path) -> None:
    for number in range(30):
        folder, gate = tmp_path / str(number), threading.Barrier(6)

        def start(_: int, folder: Path = folder, gate: threading.Barrier = gate) -> str:
            gate.wait()
            return RunFolder(folder).start_or_resume({"model": "m"})["signature"]

        with ThreadPoolExecutor(6) as pool:
            assert len(set(pool.map(start, range(6)))) == 1
        assert [path.name for path in folder.iterdir()] == ["config.json"]
    gate, outcomes = threading.Barrier(2), []

    def rival(model: str) -> None:
        gate.wait()
        try:
            outcomes.append(RunFolder(tmp_path / "contested").start_or_resume({"model": model})["model"])
        except RunFolderError as error:
            outcomes.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rival, ["one", "other"]))
    (refusal,) = [text for text in outcomes if text not in ("one", "other")]
    assert "belongs to another configuration" in refusal


def test_putting_the_old_file_back_is_another_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first, second = {"model": "m", "reward_hash": "1"}, {"model": "m", "reward_hash": "2"}
    signature = folder.start_or_resume(first)["signature"]
    assert folder.start_or_resume(second, accept_changes=True)["signature"] == signature
    assert folder.start_or_resume(second)["changed"] == ["reward"]
    with pytest.raises(RunFolderError, match="the reward file has changed"):
        folder.start_or_resume(first)


def test_a_file_that_has_changed_is_named_as_such(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start_or_resume({"model": "m", "reward_hash": "1", "base_hash": "2"})
    with pytest.raises(
        RunFolderError, match="the reward file has changed since .* give a new --out .* restore the old file"
    ):
        folder.start_or_resume({"model": "m", "reward_hash": "3", "base_hash": "2"})
    with pytest.raises(RunFolderError, match="another configuration"):
        folder.start_or_resume({"model": "m", "reward_hash": "3", "base_hash": "4"})


def test_a_folder_is_locked_under_all_its_names_and_for_processes_with_another_temporary_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "link").symlink_to(run)
    lock = "import sys; from autolayer.core.run_folder import RunFolder\nwith RunFolder(sys.argv[1]).locked(): pass"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def rival(path: Path) -> str:
        return subprocess.run(
            [sys.executable, "-c", lock, path], capture_output=True, text=True, env=environment
        ).stderr

    with RunFolder(run).locked():
        for name in ("run", "link", "run/../run"):
            assert "another process is working in" in rival(tmp_path / name)
        RunFolder(run).start_or_resume({"model": "m"})
    assert [path.name for path in run.iterdir()] == ["config.json"]
    (run / LOCK).touch()  # of a process that was killed
    assert rival(run) == ""


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    with RunFolder(tmp_path).locked(), pytest.raises(RunFolderError, match="not empty and is not a run folder"):
        RunFolder(tmp_path).start_or_resume({"model": "m"})
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
    with RunFolder(tmp_path / "new").locked():
        pass
    assert not (tmp_path / "new").exists()
    with pytest.raises(RunFolderError, match="is a file, or below one"), RunFolder(tmp_path / "letter" / "x").locked():
        pass


def test_a_place_where_no_folder_can_be_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name, part in [
        ("file", "is a file, or below one: give a folder"), ("broken", "is a file"), ("file/below", "or below one"),
        ("x" * 300, "cannot be written to .File name too long"), ("/proc/new", "cannot be written to"),
    ]:  # fmt: skip
        with pytest.raises(RunFolderError, match=part):
            RunFolder(tmp_path / name).check()
    RunFolder(tmp_path / "new" / "folder").check()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["study.db", "report.html", "arms", "arms/layer-1/history.json", "adapter/x", "tensorboard/layer-1"]
)
def test_a_run_does_not_write_through_links(tmp_path: Path, name: str) -> None:
    folder, link, victim = RunFolder(tmp_path / "run"), tmp_path / "run" / name, tmp_path / "victim"
    folder.start_or_resume({"model": "m"})
    victim.write_text("mine")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    with pytest.raises(RunFolderError, match=f"{name} is a link"):
        folder.start_or_resume({"model": "m"})
    assert victim.read_text() == "mine"
    folder.write_text("report.html", "a page")  # also if the link comes later
    assert victim.read_text() == "mine" and (folder / "report.html").read_text() == "a page"


def test_the_run_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to("there")
    assert RunFolder(tmp_path / "run").start_or_resume({"model": "m"})["model"] == "m"


@pytest.mark.parametrize("text", ['{"a": ' + "1" * 5000 + "}", "[" * 100_000, "{", "[]", "\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(RunFolderError, match="search.json is damaged"):
        RunFolder(tmp_path).read("search.json")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pipe would be waited for without end."""
    for name in ("search.json", "result.json"):
        make(tmp_path / name)
        with pytest.raises(RunFolderError, match=f"{name} is damaged .*no regular file.*delete that file"):
            RunFolder(tmp_path).read(name)
    with pytest.raises(DataError, match="result.json is no regular file"):
        PickResult.read(tmp_path)
    make(tmp_path / "layer.safetensors")
    with pytest.raises(ValueError, match="no regular file"):
        load_sealed(tmp_path / "layer.safetensors")


def test_a_pipe_anywhere_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "arms" / "layer-1").mkdir(parents=True)
    os.mkfifo(tmp_path / "arms" / "layer-1" / "history.json")
    with pytest.raises(RunFolderError, match=r"layer-1/history.json is no regular file.*delete it"):
        RunFolder(tmp_path).check()
