"""`autolayer doctor`: what is missing is named, with what to do about it."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autolayer.cli import doctor
from autolayer.cli.main import main
from autolayer.core.config import Config


def states(found: doctor.Diagnosis) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["doctor", *arguments])
    return int(left.value.code or 0)


def test_this_machine_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs the tests."""
    assert run("--model", "tiny", "--task", "math:arith", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_well"] and {"Python", "trl", "disk", "sandbox", "model", "memory"} <= {
        check["name"] for check in found["checks"]
    }
    assert run() == 0 and "torch" in capsys.readouterr().out


def test_a_missing_package_is_bad_and_an_untested_one_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError
        return "2.0.0" if name == "trl" else original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = doctor.diagnose(None)
    assert states(found)["peft"] == "bad" and states(found)["trl"] == "bad" and not found.is_well
    assert any("constraints.txt" in check.finding for check in found.checks if check.name == "trl")
    assert run() == 2


def test_a_full_disk_and_a_missing_sandbox_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    monkeypatch.setattr("autolayer.tasks.code.sandbox.open_sandbox.missing_sandbox", lambda: "no namespaces")
    found = doctor.diagnose(None)
    assert states(found)["disk"] == states(found)["sandbox"] == "note" and found.is_well


def test_the_disk_of_the_run_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def disk_usage(folder: Path) -> SimpleNamespace:
        seen.append(folder)
        return SimpleNamespace(free=1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert run("--out", str(tmp_path / "not" / "yet" / "there")) == 0
    assert seen == [tmp_path]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"device": "cuda:7"}, "--device cuda:7"), ({"layers": "99"}, "layer 99 does not exist")],
)
def test_what_the_run_would_be_refused_for(changes: dict[str, Any], words: str) -> None:
    found = doctor.diagnose(Config(model="tiny", task="math:arith", **changes))
    assert not found.is_well and any(words in check.finding for check in found.checks if check.state == "bad")


def test_a_run_that_does_not_fit_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from autolayer.pipeline import memory_fit

    monkeypatch.setattr(memory_fit.psutil, "virtual_memory", lambda: SimpleNamespace(total=1 << 20, available=1 << 20))
    found = doctor.diagnose(Config(model="tiny", task="math:arith"))
    (memory,) = [check for check in found.checks if check.name == "memory"]
    assert memory.state == "bad" and "--max-new-tokens" in memory.finding
