"""Evaluations in parts, with a model: the same rewards, less work, and a run in which arms are stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from pick_helpers import decisions, short_pick
from tiny_models import build_model
from workbench_helpers import Untouched, make_bench

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.run_folder import RunFolder
from autolayer.models.loading import load_model
from autolayer.reporting import results
from autolayer.reporting.results import PickResult
from autolayer.rollouts import evaluation
from autolayer.search.journal import quiet
from autolayer.tasks import load_task
from autolayer.training.workbench import TrainSettings, Workbench

ABSURD = {"prompts_per_step": 32, "steps": 16, "learning_rate": 0.1, "layers": "2-4", "until": "search"}
"""A rate that breaks the model in a step or two; 128 items of `select`, so the first look is at 32."""


def test_in_parts_or_at_once_an_evaluation_finds_the_same(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    before = Untouched(bench.model)
    arm = bench.train(Arm(layers=(1,), learning_rate=1e-3, seed=0), 2).arm
    whole = bench.evaluate("select", 24, seed=5, arm=arm)
    tokens = bench.engine.tokens
    seen: list[tuple[float, ...]] = []

    def look(rewards_I: Any) -> int:
        seen.append(tuple(rewards_I))
        return {0: 6, 6: 12, 12: 24, 24: 24}[len(rewards_I)]

    assert bench.evaluate("select", 24, seed=5, arm=arm, look=look) == whole
    assert seen == [whole[:end] for end in (0, 6, 12, 24)]
    everything, tokens = bench.engine.tokens - tokens, bench.engine.tokens
    spent = bench.spent
    assert bench.evaluate("select", 24, seed=5, arm=arm, look=lambda rewards_I: 6) == whole[:6]
    assert 0 < bench.engine.tokens - tokens < everything / 2
    assert (bench.spent - spent).generated_tokens == bench.engine.tokens - tokens, "what it cost is what was sampled"
    before.check()


def test_parts_of_items_with_several_samples() -> None:
    asked = evaluation.Requests(
        rows=[{"prompt": text} for text in "aabccc"],
        seeds=list(range(6)),
        counts_I=(2, 1, 3),
        suites_I=("x", "x", "y"),
        decoding=None,
    )
    part = asked.part(1, 3)
    assert [row["prompt"] for row in part.rows] == list("bccc") and part.seeds == [2, 3, 4, 5]
    assert part.counts_I == (1, 3) and part.suites_I == ("x", "y")
    assert asked.part(0, 3) == asked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PickResult, Path]:
    out = tmp_path_factory.mktemp("stopped") / "a"
    return short_pick(out, **ABSURD), out


def stored(out: Path) -> list[dict[str, Any]]:
    with quiet():
        trials = optuna.load_study(study_name="autolayer", storage=f"sqlite:///{out}/study.db").get_trials()
    return [trial.user_attrs["result"] for trial in trials if "result" in trial.user_attrs]


@pytest.mark.slow
def test_arms_that_collapse_are_stopped_after_a_quarter(run: tuple[PickResult, Path]) -> None:
    result, out = run
    found = stored(out)
    base = json.loads((out / "search.json").read_text())["base_select_rewards"]
    assert len(base) == 128 and found and all(len(each["select_rewards_I"]) == 32 for each in found)
    task = load_task(Config(model="tiny", task="math:arith"), chat=False)
    settings = TrainSettings(algorithm="grpo", prompts_per_step=32, group_size=8, beta=0.0)
    bench = Workbench(load_model("tiny"), task, settings, RunFolder(out), temperature=1.0)
    arm = Arm(**{**found[0]["arm"], "layers": tuple(found[0]["arm"]["layers"])})
    whole = bench.evaluate("select", 128, seed=0, arm=arm)
    assert whole[:32] == tuple(found[0]["select_rewards_I"]), "its rewards are the first of all"
    assert sum(whole) / 128 < sum(base) / 128 - 0.2, "it was stopped rightly"
    assert results.problems(result.to_dict()) == []
    rungs = [rung for row in result.ranking or () for rung in row.rungs]
    assert len(rungs) == len(found) and {rung.num_items for rung in rungs} == {32}


@pytest.mark.slow
def test_a_race_with_stopped_arms_is_taken_up_as_it_was(
    run: tuple[PickResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run[1], tmp_path / "whole")
    (tmp_path / "whole" / "result.json").unlink()
    assert decisions(short_pick(tmp_path / "whole", **ABSURD)) == decisions(run[0])
    original, left = Workbench._examine, 3  # the base, an arm, and in the middle of the next one

    def interrupted(self: Workbench, asked: evaluation.Requests) -> evaluation.Evaluation:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return original(self, asked)

    monkeypatch.setattr(Workbench, "_examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short_pick(tmp_path / "b", **ABSURD)
    assert len(stored(tmp_path / "b")) == 1
    assert decisions(short_pick(tmp_path / "b", **ABSURD)) == decisions(run[0])
