"""Tests four workers on a real PostgreSQL server, two of them killed. Run: make test-postgres"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from safetensors.torch import load_file

from autolayer.search.optuna_storage import quiet_optuna

if "AUTOLAYER_ENGINES" in os.environ:
    import pg8000  # pyright: ignore[reportMissingImports, reportMissingModuleSource]  # noqa: F401
else:
    pytest.skip("needs a server: make test-postgres", allow_module_level=True)

COMMAND = (
    "pick", "--model", "tiny", "--task", "math:arith", "--steps", "60", "--prompts-per-step", "8", "--num-eval", "200",
    "--budget", "2", "--device", "cpu",
)  # fmt: skip
MEASURED = ("status", "best_layers", "tied_layers", "verdict", "stop_reason", "expected_regret", "ranking",
            "learning_rate", "base_score", "trained_score", "gain", "trained_layers")  # fmt: skip


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    from postgres import server

    with server() as url:
        yield url


def start(out: Path, storage: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "autolayer", *COMMAND, "--out", str(out), "--storage", storage]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def trials(storage: str, name: str = "autolayer") -> list[Any]:
    with quiet_optuna():
        try:
            return optuna.load_study(study_name=name, storage=storage).get_trials()
        except KeyError:
            return []


def wait_for_runs(storage: str, count: int, workers: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 400
    while sum("run" in trial.user_attrs for trial in trials(storage)) < count:
        assert time.monotonic() < deadline, "the runs never came"
        assert any(worker.poll() is None for worker in workers), "every worker has left"
        time.sleep(0.2)


def test_four_workers_of_whom_two_are_killed_find_what_one_finds(storage: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"moments of the kills: random.Random({seed})")
    chance = random.Random(seed)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert start(alone, f"sqlite:///{tmp_path}/alone.db").wait(400) == 0

    workers = [start(shared, storage) for _ in range(4)]
    for victim, runs in ((chance.randrange(4), chance.randrange(1, 6)), (None, chance.randrange(7, 12))):
        wait_for_runs(storage, runs, workers)
        time.sleep(chance.uniform(0, 1.5))
        living = [worker for worker in workers if worker.poll() is None]
        dying = workers[victim] if victim is not None else chance.choice(living)
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait()
    late = start(shared, storage)  # joins by the same command
    survivors = [worker for worker in workers if worker.returncode is None]
    assert len(survivors) == 2
    assert [worker.wait(400) for worker in (*survivors, late)] == [0, 0, 0]

    expected, found = (json.loads((out / "result.json").read_text()) for out in (alone, shared))
    assert {name: found[name] for name in MEASURED} == {name: expected[name] for name in MEASURED}
    tensors, wanted = (load_file(out / "layer.safetensors") for out in (shared, alone))
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)

    answers = Counter(json.dumps(t.user_attrs["run"]) for t in trials(storage) if "result" in t.user_attrs)
    assert answers and set(answers.values()) == {1}, "a run was counted twice"
    at_work = {t.user_attrs["worker"]["pid"] for t in trials(storage) if "worker" in t.user_attrs}
    assert len(at_work) >= 2, "one worker did everything"
    for stage in ("calibrate", "probe", "search", "train"):
        assert found["cost"][stage]["generated_tokens"] == expected["cost"][stage]["generated_tokens"]


def test_a_storage_holds_one_race(storage: str, tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "autolayer", *COMMAND, "--seed", "1", "--out", str(tmp_path / "other"),
         "--storage", storage],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert refused.returncode == 2 and "holds a race with another" in refused.stderr
