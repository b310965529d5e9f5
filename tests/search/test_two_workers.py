"""Two workers share a study on SQLite, both at work at once, and find what one finds alone."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from commands import Command
from pick_helpers import decisions
from safetensors.torch import load_file
from tiny_models import build

import autolayer
from autolayer.core.run_folder import PATCH, STUDY
from autolayer.reporting.results import PickResult
from autolayer.search.optuna_storage import quiet_optuna

REWARD = """
import os, time
from pathlib import Path

here = Path(__file__).parent / "workers"  # every worker reads this file at its start, and waits for the other here
here.mkdir(exist_ok=True)
(here / str(os.getpid())).touch()
deadline = time.monotonic() + 150
while len(list(here.iterdir())) < int(os.environ.get("NUM_WORKERS", "1")) and time.monotonic() < deadline:
    time.sleep(0.05)

def score(completion_ids, **_):
    return [sum(ids) / len(ids) / 100 for ids in completion_ids]
"""


def finished_trials(storage: str) -> list[Any]:
    with quiet_optuna():
        found = optuna.load_study(study_name="autolayer", storage=storage).get_trials()
    left = [(trial.number, trial.state, trial.user_attrs) for trial in found if not trial.state.is_finished()]
    assert not left, "a trial was left behind"
    return [trial for trial in found if "result" in trial.user_attrs]


def runs_of(trials: list[Any]) -> Counter[str]:
    return Counter(json.dumps(trial.user_attrs["run"], sort_keys=True) for trial in trials)


@pytest.mark.slow
def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path / "model", num_layers=4, hidden=16)
    rows = (json.dumps({"prompt": f"{a}+{b}="}) + "\n" for a in range(12) for b in range(20))
    (tmp_path / "sums.jsonl").write_text("".join(rows))
    (tmp_path / "reward.py").write_text(REWARD)
    settings: dict[str, Any] = {
        "model": str(model), "data": str(tmp_path / "sums.jsonl"), "reward": f"{tmp_path / 'reward.py'}:score",
        "steps": 12, "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 5, "num_eval": 8, "layers": "1-3",
        "budget": 4.0, "device": "cpu"}  # fmt: skip
    alone = autolayer.pick(**settings, out=str(tmp_path / "alone"))
    (tmp_path / "workers" / str(os.getpid())).unlink()

    shared, storage = tmp_path / "shared", f"sqlite:///{tmp_path}/shared.db"
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ("pick", *options, "--out", str(shared), "--storage", storage, "--json")
    workers = [Command(*command, env={"NUM_WORKERS": "2"}) for _ in range(2)]
    ends = [worker.ended(600) for worker in workers]
    assert [end.returncode for end in ends] == [0, 0], [end.stderr[-500:] for end in ends]
    first, second = (json.loads(end.stdout) for end in ends)
    assert first["best_layers"] == second["best_layers"] == alone.to_dict()["best_layers"]
    assert decisions(PickResult.read(shared)) == decisions(alone)
    found, wanted = load_file(shared / PATCH), load_file(tmp_path / "alone" / PATCH)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)

    trials = finished_trials(storage)
    assert {trial.user_attrs["worker"]["pid"] for trial in trials} == {worker.pid for worker in workers}
    assert runs_of(trials) == runs_of(finished_trials(f"sqlite:///{tmp_path / 'alone' / STUDY}"))
    assert set(runs_of(trials).values()) == {1}, "a run was counted twice"
