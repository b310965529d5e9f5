"""After a fault the result is the same as without it, or the run is refused with the file's name; never another one."""

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from pick_helpers import decisions
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import build

import autolayer
from autolayer.comparison.sources import read_curve
from autolayer.core.errors import AutolayerError
from autolayer.core.run_folder import ARMS, PATCH, RESULT, RUN, STUDY, RunFolder
from autolayer.core.whole_files import digests_beside
from autolayer.models.merge import merge
from autolayer.models.patch import load_patch
from autolayer.models.sealed_tensors import load_sealed, save_sealed
from autolayer.pipeline import search_stage, train_stage
from autolayer.reporting.results import PickResult

REWARD = "def score(prompts, completion_ids, **_):\n    return [sum(ids) / len(ids) / 100 for ids in completion_ids]\n"
HALVES = ("search", "train")


class Runs:
    """Runs of one configuration in a folder each, made once and then copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = build("qwen3", folder / "model", num_layers=4, hidden=16)
        rows = (json.dumps({"prompt": f"{a}+{b}="}) + "\n" for a in range(12) for b in range(20))
        (folder / "sums.jsonl").write_text("".join(rows))
        (folder / "reward.py").write_text(REWARD)
        self.settings: dict[str, Any] = {
            "model": str(model), "data": str(folder / "sums.jsonl"), "reward": f"{folder / 'reward.py'}:score",
            "steps": 12, "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 5, "num_eval": 8, "layers": "1-3",
            "budget": 4.0, "device": "cpu"}  # fmt: skip

    def pick(self, out: Path) -> PickResult:
        return autolayer.pick(**self.settings, out=str(out))

    def interrupted(self, name: str, stage: Any, calls: int) -> None:
        """Interrupts a run after the n-th checkpoint of a stage."""
        original, left = stage.train_to_step, calls

        def advance(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            for trained in original(*arguments, **options):
                yield trained
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stage, "train_to_step", advance)
            patch.setattr("autolayer.pipeline.train_to_step.CHECKPOINT_STEPS", 2)
            self.pick(self.folder / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished run."""
    found = Runs(tmp_path_factory.mktemp("runs"))
    found.pick(found.folder / "finished")
    return found


@pytest.fixture(scope="module")
def halves(runs: Runs) -> Runs:
    """Two more runs, which were interrupted in the search and in the training after it."""
    runs.interrupted("search", search_stage, 3)
    runs.interrupted("train", train_stage, 1)
    return runs


def flip(path: Path, share: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "lost": lambda path: path.unlink(),
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip,
}
FILES = (
    "config.json",
    "calibration.json",
    "rollouts.json",
    "probe.json",
    "search.json",
    STUDY,
    "history",
    "last",
    "first",
)


def the_file(folder: Path, name: str) -> Path:
    """Returns a file of a run; the history and the checkpoints are those of the arm that was trained last."""
    if name not in ("history", "last", "first"):
        return folder / name
    history = max(folder.glob(f"{ARMS}/**/history.json"), key=lambda path: path.stat().st_mtime_ns)
    steps = sorted(history.parent.glob("step-*"))
    return {"history": history, "last": steps[-1], "first": steps[0]}[name]


def same_or_refused(runs: Runs, folder: Path, *names: str) -> str | None:
    """Resumes a run; returns the refusal, which names a file and advises, or None after the right result."""
    try:
        found = decisions(runs.pick(folder))
    except AutolayerError as error:
        text = str(error)
        assert any(name in text for name in names), text
        assert "delete" in text or "restore" in text or "give a new folder" in text
        return text
    assert found == decisions(PickResult.read(runs.folder / "finished"))
    return None


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("half", HALVES)
def test_a_damaged_file_of_a_half_finished_run(halves: Runs, tmp_path: Path, half: str, file: str, damage: str) -> None:
    shutil.copytree(halves.folder / half, tmp_path / "run")
    path = the_file(tmp_path / "run", file)
    DAMAGES[damage](path)
    refusal = same_or_refused(halves, tmp_path / "run", path.name, "checkpoint")
    if refusal and "together" in refusal:  # what it advises works
        (tmp_path / "run" / STUDY).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "run" / ARMS)
        assert same_or_refused(halves, tmp_path / "run") is None


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
def test_files_that_take_each_others_place(halves: Runs, tmp_path: Path, half: str) -> None:
    folders = sorted((halves.folder / half / ARMS).iterdir())
    assert len(folders) > 1
    for number, (one, other) in enumerate(
        [("history.json", "history.json"), *((step.name, step.name) for step in folders[0].glob("step-*"))]
    ):
        run = tmp_path / str(number)
        shutil.copytree(halves.folder / half, run)
        for source, target in ((folders[0], folders[1]), (folders[1], folders[0])):
            if (source / one).exists():
                shutil.copy(source / one, run / ARMS / target.name / other)
        same_or_refused(halves, run, "history.json", "step-")
    source = halves.folder / half
    for number, folder in enumerate(sorted({step.parent for step in (source / ARMS).rglob("step-*")})):
        steps = sorted(folder.glob("step-*"))
        if len(steps) > 1:
            run = tmp_path / f"steps-{number}"
            shutil.copytree(source, run)
            shutil.copy(steps[0], run / steps[-1].relative_to(source))
            refusal = same_or_refused(halves, run, steps[-1].name)
            assert refusal or (half == "train" and folder.name != "final"), "the race is over and not read again"


@pytest.mark.slow
def test_every_byte_region_of_a_study_is_guarded(halves: Runs, tmp_path: Path) -> None:
    size = (halves.folder / "train" / STUDY).stat().st_size
    for place in range(2000, size, size // 6):
        run = tmp_path / str(place)
        shutil.copytree(halves.folder / "train", run)
        content = bytearray((run / STUDY).read_bytes())
        content[place : place + 64] = bytes(64)
        (run / STUDY).write_bytes(content)
        same_or_refused(halves, run, STUDY)


def with_nan(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("damage", [*DAMAGES, "NaN"])
def test_a_damaged_layer_of_a_finished_run(runs: Runs, tmp_path: Path, damage: str) -> None:
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    {**DAMAGES, "NaN": with_nan}[damage](tmp_path / "run" / PATCH)
    with pytest.raises(AutolayerError, match=PATCH):
        load_patch(tmp_path / "run" / PATCH)
    with pytest.raises(AutolayerError, match=PATCH):
        merge(None, tmp_path / "run" / PATCH, tmp_path / "merged")
    if same_or_refused(runs, tmp_path / "run", PATCH):
        (tmp_path / "run" / PATCH).unlink()  # as it advises
        assert same_or_refused(runs, tmp_path / "run") is None
    load_patch(tmp_path / "run" / PATCH)


def test_a_number_that_is_changed_in_a_result_is_damage(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    text = (tmp_path / "run" / RESULT).read_text()
    (tmp_path / "run" / RESULT).write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(AutolayerError, match=r"result\.json is damaged"):
        PickResult.read(tmp_path / "run")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_of_a_finished_run(runs: Runs, tmp_path: Path, damage: str) -> None:
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    DAMAGES[damage](tmp_path / "run" / RESULT)
    for read in (PickResult.read, lambda path: read_curve(path / RESULT)):
        with pytest.raises(AutolayerError, match=RESULT):
            read(tmp_path / "run")
    if same_or_refused(runs, tmp_path / "run", RESULT):
        (tmp_path / "run" / RESULT).unlink()
        assert same_or_refused(runs, tmp_path / "run") is None


def test_the_layer_of_another_run_is_refused(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    other = load_patch(tmp_path / "run" / PATCH)
    type(other)(**{**vars(other), "signature": "another"}).save(tmp_path / "run" / PATCH)
    with pytest.raises(AutolayerError, match="was trained by another run"):
        runs.pick(tmp_path / "run")
    with pytest.raises(AutolayerError, match="was trained by another run"):
        merge(None, tmp_path / "run" / PATCH, tmp_path / "merged")


@pytest.mark.parametrize("name", [*FILES[1:5], RESULT, "history", "last"])
def test_a_file_of_another_run_is_refused(runs: Runs, tmp_path: Path, name: str) -> None:
    """Its content is whole, and would be right in its own folder."""
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    run, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    signature = other.start_or_resume({"model": "another"})["signature"]
    path = the_file(run.path, name)
    if path.suffix == ".json":
        content = run.read(str(path.relative_to(run.path))) or {}
        where = str(path.relative_to(run.path))
        other.write(where, {**content, "signature": signature} if name == RESULT else content)
        shutil.copy(other / where, path)
        digest = digests_beside(other / where)
        if digest.exists():
            shutil.copy(digest, digests_beside(path))
    else:
        tensors, metadata = load_sealed(path)
        save_sealed(path, tensors, {**metadata, RUN: signature})
    for later in () if name == RESULT else (RESULT, PATCH, *(["probe.json"] if name == "rollouts.json" else [])):
        (run / later).unlink()
    with pytest.raises(AutolayerError, match=rf"{path.name} is damaged \(it belongs to another run.*{signature}"):
        runs.pick(run.path)


def test_what_a_kill_was_writing_is_swept(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    arm = next((tmp_path / "run" / ARMS).iterdir())
    left = [tmp_path / "run" / f".{PATCH}.{'0' * 32}", arm / f".history.json.{'a' * 32}"]
    kept = [tmp_path / "run" / ".mine", arm / ".note.123"]
    for path in (*left, *kept):
        path.write_text("")
    runs.pick(tmp_path / "run")
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def command(runs: Runs, out: Path) -> list[str]:
    options = (word for name, value in runs.settings.items() for word in (f"--{name.replace('_', '-')}", str(value)))
    return ["pick", *options, "--out", str(out)]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def search_meets(runs: Runs, out: Path, fault: Callable[[Path], object]) -> Callable[[], PickResult]:
    """Returns a pick whose search meets a fault of its study after the first run."""

    def pick() -> PickResult:
        original, done = search_stage._run_rung, False

        def run_rung(*arguments: Any) -> Any:
            nonlocal done
            found = original(*arguments)
            if not done:
                done = True
                fault(out / STUDY)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search_stage, "_run_rung", run_rung)
            return runs.pick(out)

    return pick


def test_a_study_that_is_deleted_during_the_search(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(AutolayerError, match=r"study\.db cannot be used .*delete .*together to train again"):
        search_meets(runs, tmp_path / "run", Path.unlink)()
    assert "its race is lost" in (same_or_refused(runs, tmp_path / "run", STUDY) or "")


@pytest.mark.slow
def test_a_study_that_stays_locked(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolayer.search.optuna_storage.BUSY_SECONDS", 0.2)
    holders = []

    def hold(path: Path) -> None:
        holders.append(sqlite3.connect(path, check_same_thread=False, isolation_level=None))
        holders[-1].execute("BEGIN EXCLUSIVE")

    with pytest.raises(AutolayerError, match="database is locked.*end the process that holds it, and repeat"):
        search_meets(runs, tmp_path / "run", hold)()
    holders[0].close()
    assert same_or_refused(runs, tmp_path / "run") is None


@pytest.mark.slow
def test_a_disk_that_fills_up(runs: Runs, tmp_path: Path) -> None:
    """The same command goes on once there is space, as often as the disk fills."""
    disk, out = tmp_path / "disk", tmp_path / "disk" / "run"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        for size in (260, 300, 340, 400, 500):
            subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
            done = run(*command(runs, out))
            if done.returncode == 0:
                break
            line = last_line(done)
            assert "space" in line and "delete" not in line, line
        subprocess.run(["mount", "-o", "remount,size=20M", disk], check=True)
        assert same_or_refused(runs, out) is None
        assert size > 260
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
