"""Tests `run_once_across_workers`: one of several workers does the work while the others wait."""

import time
from pathlib import Path

import optuna
import pytest
from commands import Command

from autolayer.search.run_once import RUN_ONCE_STUDY, run_once_across_workers

WORKER = """
import os, sys, time
from pathlib import Path
from autolayer.search import run_once
run_once.RUN_ONCE_POLL_SECONDS = 0.1
folder, patience = Path(sys.argv[1]), float(sys.argv[2])

def work():
    with (folder / "begun").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(patience)
    (folder / "done").write_text(str(os.getpid()))

run_once.run_once_across_workers(f"sqlite:///{folder}/study.db", "work", work, (folder / "done").exists)
"""


def start(folder: Path, patience: float) -> Command:
    (folder / "worker.py").write_text(WORKER)
    return Command(str(folder), str(patience), cwd=folder, program="worker.py")


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text().strip()):
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_works_and_the_others_wait(tmp_path: Path) -> None:
    workers = [start(tmp_path, 1.0) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    assert len((tmp_path / "begun").read_text().split()) == 1
    run_once_across_workers(
        f"sqlite:///{tmp_path}/study.db", "work", pytest.fail, (tmp_path / "done").exists
    )  # nothing left to do


@pytest.mark.slow
def test_what_a_killed_worker_has_begun_is_taken_over(tmp_path: Path) -> None:
    slow = start(tmp_path, 600)
    wait_for(tmp_path / "begun")
    others = [start(tmp_path, 0.1) for _ in range(2)]
    time.sleep(1)
    assert not (tmp_path / "done").exists()
    slow.kill()
    assert [worker.wait(120) for worker in others] == [0, 0]
    begun = (tmp_path / "begun").read_text().split()
    assert len(begun) == 2 and begun[0] == str(slow.pid) and (tmp_path / "done").read_text() == begun[1]


def test_an_error_ends_the_turn_and_leaves_it_to_the_next(tmp_path: Path) -> None:
    storage, done = f"sqlite:///{tmp_path}/study.db", tmp_path / "done"

    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_once_across_workers(storage, "work", fail, done.exists)
    run_once_across_workers(storage, "other work", lambda: (tmp_path / "other").touch(), (tmp_path / "other").exists)
    run_once_across_workers(storage, "work", done.touch, done.exists)
    states = [t.state.name for t in optuna.load_study(study_name=RUN_ONCE_STUDY, storage=storage).trials]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]
