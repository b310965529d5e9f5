"""A damaged adapter or contribution.json is refused by its name, and a full disk loses nothing: the command resumes.

Everything goes through the real command line.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from compare_helpers import contribution, picked, saved
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import build

from autolayer.cli.main import main
from autolayer.core.run_folder import ADAPTER, PATCH, RESULT, STUDY, RunFolder
from autolayer.models.lora import INFO_FILE

REWARD = "def score(prompts, completion_ids, **_):\n    return [sum(ids) / len(ids) / 100 for ids in completion_ids]\n"
SMALL = ("--steps", "12", "--prompts-per-step", "4", "--group-size", "4", "--max-new-tokens", "5", "--num-eval", "8",
         "--device", "cpu")  # fmt: skip
TRAIN = ("train", "--layers", "2", "--learning-rate", "1e-3")
PICK = ("pick", "--layers", "1-3", "--budget", "4")
WEIGHTS = "adapter_model.safetensors"
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a command; returns its exit code and the last line of its errors."""

    def run(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(list(arguments))
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        return int(leaving.value.code or 0), (errors.splitlines() or [""])[-1]

    return run


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options of a small model with data and a reward of its own."""
    folder = tmp_path_factory.mktemp("own")
    build("qwen3", folder / "model", num_layers=4, hidden=64)
    rows = (json.dumps({"prompt": f"{a}+{b}="}) + "\n" for a in range(12) for b in range(20))
    (folder / "sums.jsonl").write_text("".join(rows))
    (folder / "reward.py").write_text(REWARD)
    paths = ("--model", folder / "model", "--data", folder / "sums.jsonl", "--reward", f"{folder / 'reward.py'}:score")
    return (*map(str, paths), *SMALL)


# Damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def with_nan(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path, metadata)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "emptied": lambda path: os.truncate(path, 0),
    "garbage": lambda path: path.write_bytes(b"\xff" * 999),
    "flipped": flip,
}


@pytest.fixture(scope="module")
def adapted(own: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    with pytest.raises(SystemExit) as leaving:
        main([*TRAIN, *own, "--adapter", "lora", "--out", str(out)])
    assert leaving.value.code == 0
    return out


@pytest.mark.parametrize(
    ("name", "damage"), [(WEIGHTS, "NaN"), *((name, damage) for name in (WEIGHTS, INFO_FILE) for damage in DAMAGES)]
)
def test_a_damaged_adapter_is_refused(call: Call, adapted: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(adapted, tmp_path / "run")
    {**DAMAGES, "NaN": with_nan}[damage](tmp_path / "run" / ADAPTER / name)
    code, line = call("merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged"))
    assert code == 2 and str(tmp_path / "run" / ADAPTER) in line
    cures = {
        WEIGHTS: "copy it again, or delete it and",
        "autolayer.json": "folder of a finished run",
    }
    assert cures[name] in line and not (tmp_path / "merged").exists()


def test_a_run_whose_adapter_is_damaged_says_so_and_trains_it_again(
    call: Call, adapted: Path, own: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(adapted, tmp_path / "run")
    truncate(tmp_path / "run" / ADAPTER / WEIGHTS)
    again = (*TRAIN, *own, "--adapter", "lora", "--out", str(tmp_path / "run"))
    code, line = call(*again)
    assert code == 2 and f"the adapter in {tmp_path / 'run' / ADAPTER} is damaged" in line
    shutil.rmtree(tmp_path / "run" / ADAPTER)  # as it advises
    assert call(*again)[0] == 0
    before, after = (load_file(f / ADAPTER / WEIGHTS) for f in (adapted, tmp_path / "run"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("damage", [*DAMAGES, "another number", "another kind"])
def test_a_damaged_contribution_is_refused(call: Call, tmp_path: Path, damage: str) -> None:
    run, measured = saved(tmp_path / "run", picked()), RunFolder(tmp_path / "measured")
    measured.write("contribution.json", contribution().to_dict())  # as `measure` does
    file = measured / "contribution.json"
    edits = {
        "another number": ('"num_items": 256', '"num_items": 255'),
        "another kind": ('"steps": 50', '"steps": "x"'),
    }
    if damage in edits:
        old, new = edits[damage]
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    else:
        DAMAGES[damage](file)
    for given in (measured.path, file):
        code, line = call("compare", str(run), str(given))
        assert code == 2 and str(file) in line and "delete it and repeat the command that made it" in line, line


# A full disk


def product(out: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    result = json.loads((out / RESULT).read_text())
    kept = ("best_layers", "learning_rate", "base_score", "trained_score", "gain", "ranking")
    return {name: result[name] for name in kept}, load_file(out / PATCH)


@pytest.mark.slow
@pytest.mark.parametrize("verb", [TRAIN, PICK], ids=["train", "pick"])
def test_a_full_disk_loses_nothing(own: tuple[str, ...], tmp_path: Path, verb: tuple[str, ...]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert Command(*verb, *own, "--out", str(whole)).wait() == 0
    checkpoint = max(whole.rglob("step-*"), key=lambda path: path.stat().st_size)
    met = []
    for size in (2000, (whole / STUDY if verb is PICK else checkpoint).stat().st_size - 5000):
        done = Command(*verb, *own, "--out", str(out), file_size=size).ended()
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert line.startswith("autolayer: error: ") and "space" in line and "delete" not in line, line
        met.append(line)
    assert met[0] != met[1], "the second met no later file"
    assert Command(*verb, *own, "--out", str(out)).wait() == 0
    (expected, wanted), (found, tensors) = product(whole), product(out)
    assert found == expected
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert not [path for path in out.rglob(".*") if path.name != f".{RESULT}.digest"], "a temporary file was left"
