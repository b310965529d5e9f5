"""A run folder belongs to one configuration, whoever starts in it and when."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autolayer.core.errors import RunFolderError
from autolayer.core.run_folder import RunFolder


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


def test_a_folder_is_locked_under_all_its_names(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with RunFolder(tmp_path / "run").locked():
        for name in ("link", "run/../run"):
            with pytest.raises(RunFolderError, match="another process"), RunFolder(tmp_path / name).locked():
                pass
