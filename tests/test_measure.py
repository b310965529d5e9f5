"""Measured contributions: each training done once, failures out, nothing lost. Run: pytest tests/test_measure.py"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

import autolayer
from autolayer import checkpoints, cli, config, contribution
from autolayer.arms import Arm
from autolayer.contribution import ArmGain, Contribution
from autolayer.costs import Cost
from autolayer.errors import ConfigError, DataError, RunFolderError, TrainingError
from autolayer.measuring import schedule
from autolayer.measuring.schedule import MAX_RATES, MIN_RATES, Schedule, rate_grid, spread
from autolayer.measuring.trials import MEASURED, Trials
from autolayer.probes.run import ProbeReport
from autolayer.progress import Stage
from autolayer.runs import RunFolder
from autolayer.workbench import Workbench

SHORT: dict[str, Any] = {"model": "tiny", "task": "math:arith", "layers": "0,7", "steps": 12, "prompts_per_step": 8,
                         "num_eval": 256, "device": "cpu", "num_seeds": 2, "rates": "6e-4,2e-3"}  # fmt: skip
GRID = (1e-4, 1e-3, 1e-2, 1e-1)


# The trials, on a bench that only counts


class Bench:
    """Rewards follow from layer, rate and step; checkpoints are empty files."""

    def __init__(self, folder: Path, diverging: dict[float, int] | None = None) -> None:
        self.folder = RunFolder(folder)
        self.diverging = diverging or {}
        """Rate -> step that it does not reach."""
        self.spent, self.calls, self.left = Cost(), [], 10**9

    def _work(self, call: tuple) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.calls.append(call)

    def train(self, arm: Arm, to_step: int, on_step: Any) -> SimpleNamespace:
        assert arm.step < to_step <= arm.step + 25
        self._work(("train", arm.key, arm.step, to_step))
        if to_step > self.diverging.get(arm.learning_rate, 10**9):
            raise TrainingError("the gradient became nan")
        for _ in range(arm.step, to_step):
            on_step(0.5)
        arm = dataclasses.replace(arm, step=to_step)
        arm = dataclasses.replace(arm, checkpoint=checkpoints.name_of(arm))
        path = self.folder / str(arm.checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        cost = Cost(generated_tokens=to_step)
        self.spent += cost
        return SimpleNamespace(arm=arm, cost=cost)

    def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> tuple[float, ...]:
        self._work(("evaluate", split, arm and (arm.key, arm.step)))
        self.spent += Cost(generated_tokens=num_items)
        assert seed == 3 and num_items == {"select": 256, "eval": 64}[split]
        best = {"full": 1e-3}.get(str(arm.layers), 1e-2) if arm else 0
        return (1.0 if arm and arm.learning_rate == best else arm.learning_rate if arm else 0.0,) * num_items

    def forget(self, arm: Arm) -> None:
        checkpoints.delete(self.folder.path, arm)


def trials(bench: Bench, *, grid: tuple[float, ...] = GRID, steps: int = 120) -> Trials:
    measure = config.MeasureConfig(num_seeds=2)
    settings = config.Config(model="tiny", steps=steps, num_eval=64, seed=3, measure=measure)
    plan = Schedule.of(settings, num_arms=2, num_rates=len(grid))
    stages: Any = SimpleNamespace(bench=bench, config=settings, folder=bench.folder)
    return Trials(stages, grid, plan, Stage("measure", plan.total))


def run_both(run: Trials) -> list:
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
    assert json.loads((tmp_path / MEASURED).read_text())["failed"] == {
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
        def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> tuple[float, ...]:
            super().evaluate(split, num_items, seed=seed, arm=arm)
            rate = arm.learning_rate if arm else 0.0
            mean = {1e-2: 0.7, 1e-3: 0.7 - gap}.get(rate, 0.1)
            noise = np.random.default_rng(int(rate * 1e6)).normal(size=num_items)
            return tuple(mean + 0.5 * (noise - noise.mean()))

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
    (tmp_path / MEASURED).unlink()
    bench.left, bench.calls = 10**9, []
    trials(bench).run((5,))
    assert all(call[2][1] == 30 for call in bench.calls if call[0] == "evaluate" and "rate-0.0001" in call[2][0])


def test_a_damaged_file_of_rewards_is_named(tmp_path: Path) -> None:
    (tmp_path / MEASURED).write_text('{"rewards": {}}')
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
    blank: dict[str, Any] = {name: () for name in ("layers", "predicted", "low", "high")}
    probed = ProbeReport(**blank, scores={}, reliability={}, deviation=0.1, learned_from=0, learning_rates=rates)
    grid = rate_grid(config.Config(model="tiny"), probed, num_layers)
    # All parameters together: three of the layers were probed, the others are taken for as sensitive.
    full = (num_layers / 3 * sum(rate**-2 for rate in rates if rate)) ** -0.5
    assert list(grid) == sorted(grid) and MIN_RATES <= len(grid) <= MAX_RATES
    assert grid[0] < full and grid[-1] > 1e-3
    assert rate_grid(config.Config(model="tiny", learning_rate=5e-4), probed, num_layers) == (5e-4,)
    named = config.Config(model="tiny", measure=config.MeasureConfig(rates="2e-3,1e-3"))
    assert sorted(rate_grid(named, probed, num_layers)) == [1e-3, 2e-3]


# The whole command, on the packaged model


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contribution, Path]:
    out = tmp_path_factory.mktemp("measured") / "run"
    return autolayer.measure(**SHORT, out=str(out)), out


def test_the_record_says_what_was_trained(measured: tuple[Contribution, Path]) -> None:
    found, out = measured
    values = json.loads((out / contribution.NAME).read_text())
    assert contribution.problems(values) == [] and values == found.to_dict()
    assert contribution.read(out) == found == contribution.read(out / contribution.NAME)
    assert list(found.layers) == [0, 7] and found.seeds == (0, 1) and found.rates == (6e-4, 2e-3)
    assert found.full.value == pytest.approx(sum(found.full.gains) / 2)
    for arm in found.layers.values():
        assert arm.value == pytest.approx(sum(arm.gains) / sum(found.full.gains))
        assert arm.low <= arm.value <= arm.high and len(set(arm.gains)) == 2
    assert found.seed_sd is not None and found.ceiling is not None and found.num_items == 256
    assert set(found.probes) >= {"gradient_norm", "first", "middle", "last", "random"}
    assert set(found.cost) == {"calibrate", "probe", "rates", "train"}
    assert all(cost["generated_tokens"] > 0 for stage, cost in found.cost.items() if stage != "probe")
    assert not list(out.glob("arms/*")), "checkpoints of finished runs are of no use"


def test_the_edges_of_the_grid_are_noted(measured: tuple[Contribution, Path]) -> None:
    found, _ = measured
    text = " ".join(found.notes)
    assert all(f"{name}" in text for name in ("layer 0", "layer 7", "full")), "each of two rates is an edge"
    assert "might be better still" in text


def test_a_finished_measurement_is_read_not_repeated(
    measured: tuple[Contribution, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workbench, "sample", lambda *_, **__: pytest.fail("sampled again"))
    assert autolayer.measure(**SHORT, out=str(measured[1])) == measured[0]


def test_another_number_of_seeds_is_another_configuration(measured: tuple[Contribution, Path]) -> None:
    with pytest.raises(RunFolderError, match="num_seeds"):
        autolayer.measure(**{**SHORT, "num_seeds": 3}, out=str(measured[1]))


@pytest.mark.slow
def test_interrupted_in_a_real_run_the_same_numbers_come_out(
    measured: tuple[Contribution, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, left = Workbench.train, 0

    def cut(self: Workbench, *args: Any, **options: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return train(self, *args, **options)

    monkeypatch.setattr(Workbench, "train", cut)
    for left in (2, 3, 4):  # noqa: B007 (`cut` counts it down)
        with pytest.raises(KeyboardInterrupt):
            autolayer.measure(**SHORT, out=str(tmp_path))
    left = 10**9

    def comparable(found: Contribution) -> dict[str, Any]:
        cost = {stage: cost["generated_tokens"] for stage, cost in found.cost.items()}
        return {**found.to_dict(), "cost": cost}

    assert comparable(autolayer.measure(**SHORT, out=str(tmp_path))) == comparable(measured[0])


def test_without_a_full_gain_there_is_an_error_and_the_rewards_are_kept(tmp_path: Path) -> None:
    options = {**SHORT, "steps": 1, "num_eval": 64, "num_seeds": 1, "rates": "1e-8"}
    with pytest.raises(DataError, match=r"full-parameter RL gained .*not above 0.*--steps"):
        autolayer.measure(**options, out=str(tmp_path))
    assert not (tmp_path / contribution.NAME).exists()
    assert len(json.loads((tmp_path / MEASURED).read_text())["rewards"]) == 4


# The command line


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            cli.main(["measure", "--model", "tiny", "--task", "math:arith", *arguments])
        out, err = capfd.readouterr()
        return int(leaving.value.code or 0), out, err

    return run


def test_the_command_prints_the_table_or_the_record(call: Any, measured: tuple[Contribution, Path]) -> None:
    found, out = measured
    options = ["--layers", "0,7", "--steps", "12", "--prompts-per-step", "8", "--num-eval", "256", "--device", "cpu",
               "--num-seeds", "2", "--rates", "6e-4,2e-3", "--out", str(out)]  # fmt: skip
    code, text, _ = call(*options)
    assert code == 0 and all(word in text for word in ("layer 0", "layer 7", "full", "seed 1", "Best: layer"))
    assert f"{found.layers[7].value:.2f} [{found.layers[7].low:.2f}, {found.layers[7].high:.2f}]" in text
    code, text, _ = call(*options, "--json")
    assert code == 0 and json.loads(text) == found.to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num-seeds", "0"), "--num-seeds 0"),
        (("--rates", "1e-3,fast"), "'1e-3,fast'"),
        (("--rates", "0,1e-3"), "above 0"),
        (("--rates", "1e-3,inf"), "above 0"),
        (("--rates", "nan"), "above 0"),
        (("--rates", ""), "cannot be read"),
        (("--rates", "1e-3", "--learning-rate", "1e-3"), "exclude each other"),
        (("--layers", "99"), "layer 99 does not exist"),
        (("--layers", "full"), "full"),
        (("--num-eval", "1"), "--num-eval 1"),
    ],
)
def test_what_cannot_work_is_one_sentence(call: Any, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    code, out, err = call(*options, "--device", "cpu")
    assert code == 2 and out == "" and words in err.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*"))


def test_auto_means_the_default(call: Any) -> None:
    one, other = call("--rates", "auto", "--dry-run", "--json")[1], call("--dry-run", "--json")[1]
    assert json.loads(one)["rates"] is None and json.loads(one)["quarter"] == 100
    assert {**json.loads(one), "config": None} == {**json.loads(other), "config": None}


def test_dry_run_counts_steps_and_writes_nothing(call: Any, tmp_path: Path) -> None:
    code, out, _ = call(
        "--dry-run", "--layers", "0-2", "--steps", "40", "--num-seeds", "2", "--rates", "1e-3,2e-3,3e-3"
    )
    assert code == 0 and not list(tmp_path.iterdir())
    total = 4 * (3 * 10 + 3 * 30 - 40 + 2 * 40)
    assert f"{total} steps: as many as {total / 40:.1f} full runs" in " ".join(out.split())
    assert schedule.dry_run(config.Config(model="tiny", task="math:arith", learning_rate=1e-3)).num_full_runs == 27


def test_the_table_of_a_toml_file_counts_unless_the_command_line_says_otherwise(call: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[measure]\nnum_seeds = 5\nrates = "1e-3"\n')
    values = json.loads(call("--config", "run.toml", "--num-seeds", "4", "--dry-run", "--json")[1])
    assert len(values["seeds"]) == 4 and values["rates"] == [1e-3]


def test_only_measure_minds_the_table() -> None:
    plain = config.from_dict({"model": "tiny"})
    more = config.from_dict({"model": "tiny", "measure": {"num_seeds": 4}})
    assert plain.signature != more.signature
    with pytest.raises(ConfigError, match="also steps, num_seeds"):
        autolayer.measure(plain, steps=3, num_seeds=2)


# The record


def record(**changes: Any) -> Contribution:
    arm = ArmGain(learning_rate=1e-3, gains=(0.1, 0.2), value=0.5, low=0.3, high=0.7)
    values: dict[str, Any] = {
        "model": "tiny", "base": "ab", "architecture": "qwen3", "num_parameters": 10, "task": "math:arith",
        "algorithm": "grpo", "num_layers": 8, "steps": 3, "prompts_per_step": 2, "group_size": 8, "seeds": (0, 1),
        "num_items": 9, "base_score": 0.4, "full": arm, "layers": {1: arm, 4: arm}, "best_layers": (1,), "level": 0.95,
        "seed_sd": 0.01, "ceiling": 0.9, "estimator": "as told", "rates": (1e-3,), "probes": {"first": (2.0, 1.0)},
    }  # fmt: skip
    return Contribution(**{**values, **changes})


def test_the_schema_names_the_fields_of_the_record() -> None:
    schema = contribution.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    names = {field.name for field in dataclasses.fields(Contribution)}
    assert set(schema["properties"]) == set(schema["required"]) == names
    arm = {field.name for field in dataclasses.fields(ArmGain)}
    assert set(schema["properties"]["full"]["properties"]) == arm
    assert set(schema["properties"]["layers"]["items"]["properties"]) == arm | {"layer"}
    assert set(config.ALGORITHMS) <= set(schema["properties"]["algorithm"]["enum"])


@pytest.mark.parametrize("changes", [{}, {"seeds": (5, 6)}, {"seed_sd": None, "ceiling": None}, {"probes": {}}])
def test_a_record_survives_the_file(changes: dict[str, Any], tmp_path: Path) -> None:
    contribution.validate(record(**changes).to_dict())
    (tmp_path / contribution.NAME).write_text(json.dumps(record(**changes).to_dict()))
    assert contribution.read(tmp_path) == record(**changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [0]}, "one gain for each seed"),
        ({"probes": {"first": [1.0]}}, "one score for each measured layer"),
        ({"base_score": float("nan")}, "(?i)nan|json compliant"),
        ({"layers": []}, "/layers"),
        ({"extra": 1}, "extra"),
        ({"schema_version": 2}, "schema_version"),
        ({"ceiling": 1.5}, "/ceiling"),
    ],
)
def test_what_is_no_record_is_not_written(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        contribution.validate({**record().to_dict(), **change})


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1}'])
def test_a_file_that_is_no_record_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / contribution.NAME).write_text(text)
    with pytest.raises(DataError, match=r"is no contribution\.json"):
        contribution.read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        contribution.read(tmp_path / "nowhere")
