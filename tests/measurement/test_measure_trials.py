"""TrainingRuns and rates of `measure`: each run once, failures out, nothing lost."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autolayer.core import config
from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError, TrainingError
from autolayer.core.progress import Stage
from autolayer.core.run_folder import RunFolder
from autolayer.distributed.process_group import ProcessGroup
from autolayer.measurement.schedule import MAX_RATES, MIN_RATES, Schedule, rate_grid, spread
from autolayer.measurement.training_runs import MEASURED_FILE, TrainingRuns
from autolayer.pipeline import train_to_step
from autolayer.pipeline.run_context import RunContext
from autolayer.probes.probe_report import ProbeReport
from autolayer.training import checkpoints

GRID = (1e-4, 1e-3, 1e-2, 1e-1)


class Bench:
    """Rewards follow from layer, rate and step; checkpoints are empty files."""

    def __init__(self, folder: Path, diverging: dict[float, int] | None = None) -> None:
        self.folder = RunFolder(folder)
        self.diverging = diverging or {}
        """Rate -> step that it does not reach."""
        self.spent, self.calls, self.left = Cost(), [], 10**9
        self.process_group = ProcessGroup()
        self.checkpoints = checkpoints.Checkpoints(folder, self.process_group)

    def _work(self, call: tuple) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.calls.append(call)

    def train(self, arm: Arm, to_step: int, on_step: Any, seconds: float) -> SimpleNamespace:
        assert arm.step < to_step <= arm.step + 25
        self._work(("train", arm.key, arm.step, to_step))
        if to_step > self.diverging.get(arm.learning_rate, 10**9):
            raise TrainingError("the gradient became nan")
        for _ in range(arm.step, to_step):
            on_step(0.5)
        arm = dataclasses.replace(arm, step=to_step)
        arm = dataclasses.replace(arm, checkpoint=checkpoints.checkpoint_path(arm))
        path = self.folder / str(arm.checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        cost = Cost(generated_tokens=to_step)
        self.spent += cost
        return SimpleNamespace(arm=arm, cost=cost, saving_seconds=0.0)

    def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> Any:
        self._work(("evaluate", split, arm and (arm.key, arm.step)))
        self.spent += Cost(generated_tokens=num_items)
        assert seed == 3 and num_items == {"select": 256, "eval": 64}[split]
        best = {"full": 1e-3}.get(str(arm.layers), 1e-2) if arm else 0
        reward = 1.0 if arm and arm.learning_rate == best else arm.learning_rate if arm else 0.0
        return SimpleNamespace(rewards_I=(reward,) * num_items)


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_to_step, "train_arm", Bench.train)


def trials(bench: Bench, *, grid: tuple[float, ...] = GRID, steps: int = 120) -> TrainingRuns:
    measure = config.MeasureConfig(num_seeds=2)
    settings = config.Config(model="tiny", steps=steps, num_eval=64, seed=3, measure=measure)
    plan = Schedule.of(settings, num_arms=2, num_rates=len(grid))
    stages: Any = SimpleNamespace(bench=bench, config=settings, folder=bench.folder)
    stages.reading = lambda name: RunContext.reading(stages, name)
    return TrainingRuns(stages, grid, plan, Stage("measure", plan.total))


def run_both(run: TrainingRuns) -> list:
    return [run.base("eval"), run.run((5,)), run.run("full")]


def test_an_arm_takes_its_best_rate_and_the_first_seeds_run_is_the_one_that_chose_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = trials(bench)
    _, (layer_rate, rewards_S), (full_rate, _) = run_both(run)
    assert (layer_rate, full_rate) == (1e-2, 1e-3)
    assert rewards_S == [(1.0,) * 64] * 2
    best = "layer-5_rate-0.01_seed-3"
    assert [call[2:] for call in bench.calls if call[:2] == ("train", best)] == [
        (0, 25), (25, 30), (30, 50), (50, 75), (75, 100), (100, 120)]  # fmt: skip
    assert max(call[3] for call in bench.calls if "rate-0.0001" in call[1]) == 30
    assert max(call[3] for call in bench.calls if call[0] == "train" and "5_rate-0.1_" in call[1]) == 120
    assert max(call[3] for call in bench.calls if call[0] == "train" and "5_rate-0.001_" in call[1]) == 120
    assert run.bar.completed == run.bar.total == 2 * (4 * 30 + 3 * 90 - 120 + 2 * 120)
    assert not list((tmp_path / "arms").iterdir())


@pytest.mark.parametrize("diverging", [{}, {1e-2: 20}, {1e-2: 100}, {1e-2: 60, 1e-1: 50}], ids=str)
def test_interrupted_anywhere_it_ends_the_same_and_repeats_nothing(tmp_path: Path, diverging: dict) -> None:
    whole, patient = Bench(tmp_path / "whole", diverging), Bench(tmp_path / "cut", diverging)
    run = trials(whole)
    wanted = run_both(run)
    while True:
        patient.left = 3
        again = trials(patient)
        try:
            found = run_both(again)
            break
        except KeyboardInterrupt:
            continue
    assert found == wanted and again.cost == run.cost and again.failures() == run.failures()
    assert patient.calls == whole.calls
    assert diverging or again.bar.completed == run.bar.completed == run.bar.total


@pytest.mark.parametrize("step", [20, 50, 119])
def test_a_rate_that_diverges_is_out_with_its_reason(tmp_path: Path, step: int) -> None:
    bench = Bench(tmp_path, {1e-2: step})
    run = trials(bench)
    assert run.run((5,))[0] == 1e-1
    # The next best rate takes its place among the three that go all the way.
    assert {call[1] for call in bench.calls if call[0] == "train" and call[3] == 120} >= {
        "layer-5_rate-0.1_seed-3", "layer-5_rate-0.0001_seed-3"}  # fmt: skip
    assert run.failures() == ["layer 5 at rate 0.01: the gradient became nan"]
    assert json.loads((tmp_path / MEASURED_FILE).read_text())["failed"] == {
        "layer 5 at rate 0.01": "the gradient became nan"
    }


@pytest.mark.parametrize("grid", [GRID, (1e-2,)])
def test_an_arm_without_a_rate_is_an_error_and_stays_one(tmp_path: Path, grid: tuple[float, ...]) -> None:
    bench = Bench(tmp_path, dict.fromkeys(grid, 10))
    for _ in range(2):
        with pytest.raises(TrainingError, match="layer 5 failed at every learning rate"):
            trials(bench, grid=grid).run((5,))
    assert len([call for call in bench.calls if call[0] == "train"]) == len(grid)


@pytest.mark.parametrize(("gap", "expected"), [(0.02, 1e-3), (0.3, 1e-2)])
def test_of_rates_that_cannot_be_told_apart_the_smallest_is_taken(gap: float, expected: float, tmp_path: Path) -> None:
    """Its reward is `gap` lower on average, with a spread over items of about .5."""

    class Noisy(Bench):
        def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> Any:
            super().evaluate(split, num_items, seed=seed, arm=arm)
            rate = arm.learning_rate if arm else 0.0
            mean = {1e-2: 0.7, 1e-3: 0.7 - gap}.get(rate, 0.1)
            noise = np.random.default_rng(int(rate * 1e6)).normal(size=num_items)
            return SimpleNamespace(rewards_I=tuple(mean + 0.5 * (noise - noise.mean())))

    assert trials(Noisy(tmp_path)).run((5,))[0] == expected


def test_a_single_rate_is_not_chosen(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = trials(bench, grid=(1e-2,))
    assert run.run((5,))[0] == 1e-2
    assert {call[1] for call in bench.calls if call[0] == "evaluate"} == {"eval"}
    assert run.cost["rates"] == Cost()


def test_checkpoints_ahead_of_lost_rewards_are_not_scored_in_their_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.left = 20
    with pytest.raises(KeyboardInterrupt):
        trials(bench).run((5,))
    (tmp_path / MEASURED_FILE).unlink()
    bench.left, bench.calls = 10**9, []
    trials(bench).run((5,))
    steps = [call[2][1] for call in bench.calls if call[0] == "evaluate" and "rate-0.0001" in call[2][0]]
    assert steps and set(steps) == {30}


def test_a_damaged_file_of_rewards_is_named(tmp_path: Path) -> None:
    (tmp_path / MEASURED_FILE).write_text('{"rewards": {}}')
    with pytest.raises(RunFolderError, match=r"measured\.json is damaged.*failed"):
        trials(Bench(tmp_path))


def test_the_default_grid_reaches_from_end_to_end_with_a_handful_of_rates() -> None:
    assert spread(1e-4, 8e-4) == (1e-4, 2e-4, 4e-4, 8e-4)
    assert spread(1e-4, 1e-4) == (1e-4, 2e-4, 4e-4)
    wide = spread(1e-6, 1e-1)
    assert len(wide) == 6 and (wide[0], wide[-1]) == (1e-6, 1e-1)


@pytest.mark.parametrize("num_layers", [4, 36])
def test_the_default_grid_holds_the_starting_rates_of_everything_it_is_for(num_layers: int) -> None:
    rates = (3e-4, None, 1e-3, 6e-4)
    blank: dict[str, Any] = {name: () for name in ("layers", "predicted", "low", "high", "deviations")}
    probed = ProbeReport(**blank, scores={}, reliability={}, learned_from=0, learning_rates=rates)
    grid = rate_grid(config.Config(model="tiny"), probed, num_layers)
    # All parameters together: three of the layers were probed, the others are taken for as sensitive.
    full = (num_layers / 3 * sum(rate**-2 for rate in rates if rate)) ** -0.5
    assert list(grid) == sorted(grid) and MIN_RATES <= len(grid) <= MAX_RATES
    assert grid[0] < full and grid[-1] > 1e-3
    assert rate_grid(config.Config(model="tiny", learning_rate=5e-4), probed, num_layers) == (5e-4,)
    named = config.Config(model="tiny", measure={"rates": "2e-3,1e-3"})
    assert sorted(rate_grid(named, probed, num_layers)) == [1e-3, 2e-3]
