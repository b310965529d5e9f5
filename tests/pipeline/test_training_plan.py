"""`train --dry-run`: the plan has the parts of a training, costs what the named layers cost, and writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_models import build

from autolayer.cli.main import main
from autolayer.core.config import Config
from autolayer.core.errors import ModelError
from autolayer.pipeline.dry_run import plan_run
from autolayer.pipeline.run_plan import RunPlan

TINY: dict[str, Any] = {"model": "tiny", "task": "math:arith", "device": "cpu", "steps": 40}


def plan(**options: Any) -> RunPlan:
    return plan_run(Config(**TINY, **options), "train", timed=False)


def text_of(found: RunPlan) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(found.render())
    return captured.get()


def test_a_search_whose_calibration_exceeds_the_budget_says_so_before_it_spends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    few = Config(**TINY).replace(steps=4, prompts_per_step=8)
    plan_run(few.replace(layers="2"), "train", timed=False)
    plan_run(few.replace(budget=0.4), "pick", timed=False)
    assert not caplog.messages
    plan_run(few, "pick", timed=False)
    (said,) = caplog.messages
    assert "12 prompts, 38% of a full run's, which is more than --budget 0.25" in said and "--budget 0," in said


def test_with_a_rate_it_calibrates_trains_and_evaluates() -> None:
    found = plan(layers="2", learning_rate=1e-3)
    assert list(found.stages) == ["calibrate"] and found.probes is None and not found.memory.probing
    text = text_of(found)
    assert "trained: 2" in text and "learning rate 0.001" in text and "calibrate" in text and "evaluate" in text
    assert "search" not in text and "finding" not in text and "probe" not in text


def test_without_a_rate_the_probes_are_planned() -> None:
    found = plan(layers="2")
    assert list(found.stages) == ["calibrate", "probe"] and found.probes is not None and found.memory.probing
    assert "learning rate from the probes" in text_of(found) and "folds of" in text_of(found)


def test_the_cost_is_that_of_the_named_layers() -> None:
    one, low, full = (plan(layers=layers, learning_rate=1e-3) for layers in ("2", "0-2", "full"))
    assert one.full_run.generated_tokens == low.full_run.generated_tokens == full.full_run.generated_tokens
    assert one.full_run.layer_tokens < low.full_run.layer_tokens < full.full_run.layer_tokens
    states = [each.memory.training["float32 master, gradient and Adam"] for each in (one, low, full)]
    assert states[1] == 3 * states[0] and states[2] > 4 * states[0]
    assert plan(layers="0-2", adapter="lora", learning_rate=1e-3).memory.training["activations"] > 0


def test_the_command_prints_it_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as leaving:
        main(["train", *options, "--layers", "1-2", "--dry-run", "--json"])
    assert leaving.value.code == 0 and not list(tmp_path.iterdir())
    found = json.loads(capsys.readouterr().out)
    assert found["verb"] == "train" and found["candidates"] == [1, 2] and found["seconds"]["train"] > 0
    with pytest.raises(SystemExit) as leaving:
        main(["train", *options, "--layers", "99", "--dry-run"])
    assert leaving.value.code == 2 and "layer 99 does not exist" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_work_is_refused_before_any_weight_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no eos_token"):
        plan_run(Config(**TINY).replace(model=str(build("llama", tmp_path, eos=False))), timed=False)
