"""`measure` on the packaged model, from Python and from the command line."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

import autolayer
from autolayer.cli.main import main
from autolayer.core import config
from autolayer.core.errors import ConfigError, DataError, RunFolderError
from autolayer.measurement import schedule
from autolayer.measurement.training_runs import MEASURED_FILE
from autolayer.pipeline import train_to_step
from autolayer.reporting.contribution import Contribution
from autolayer.training.workbench import Workbench

SHORT: Any = {"model": "tiny", "task": "math:arith", "layers": "0,7", "steps": 12, "prompts_per_step": 8,
                         "num_eval": 256, "device": "cpu", "num_seeds": 2, "rates": "6e-4,2e-3"}  # fmt: skip


# From Python


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contribution, Path]:
    out = tmp_path_factory.mktemp("measured") / "run"
    return autolayer.measure(**SHORT, out=str(out)), out


@pytest.mark.slow
def test_the_record_says_what_was_trained(measured: tuple[Contribution, Path]) -> None:
    found, out = measured
    values = json.loads((out / Contribution.FILE).read_text())
    assert values == found.to_dict()
    assert Contribution.read(out) == found == Contribution.read(out / Contribution.FILE)
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
        autolayer.measure(**cast(Any, {**SHORT, "num_seeds": 3}), out=str(measured[1]))


@pytest.mark.slow
def test_interrupted_in_a_real_run_the_same_numbers_come_out(
    measured: tuple[Contribution, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, left = train_to_step.train_arm, 0

    def cut(*args: Any, **options: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return train(*args, **options)

    monkeypatch.setattr(train_to_step, "train_arm", cut)
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
    assert not (tmp_path / Contribution.FILE).exists()
    assert len(json.loads((tmp_path / MEASURED_FILE).read_text())["rewards"]) == 4


# The command line


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["measure", "--model", "tiny", "--task", "math:arith", *arguments])
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
    assert (
        schedule.plan_measurement(config.Config(model="tiny", task="math:arith", learning_rate=1e-3)).num_full_runs
        == 27
    )


def test_the_table_of_a_toml_file_counts_unless_the_command_line_says_otherwise(call: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[measure]\nnum_seeds = 5\nrates = "1e-3"\n')
    values = json.loads(call("--config", "run.toml", "--num-seeds", "4", "--dry-run", "--json")[1])
    assert len(values["seeds"]) == 4 and values["rates"] == [1e-3]


def test_only_measure_minds_the_table() -> None:
    plain = config.Config(model="tiny")
    more = config.Config(model="tiny", measure={"num_seeds": 4})
    assert plain.signature != more.signature
    with pytest.raises(ConfigError, match="also steps, num_seeds"):
        autolayer.measure(plain, steps=3, num_seeds=2)
