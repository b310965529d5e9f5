"""`autolayer export`, from the folder of a run to what the other trainer trains."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from datasets import Dataset
from result_helpers import finished
from tiny_models import build
from transformers import AutoModelForCausalLM
from workbench_helpers import differing, mean_id, weights_of

from autolayer.cli.commands import cli
from autolayer.core.errors import ConfigError, ModelError, RunFolderError
from autolayer.core.run_folder import CALIBRATION, CONFIG, RESULT, RunFolder
from autolayer.reporting.results import PickResult
from autolayer.training.grpo_trainer import LOSS

SETTINGS = {
    "algorithm": "grpo", "task": "math:arith", "steps": 2, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 4,
    "temperature": 1.0, "beta": 0.0, "adapter": None,
}  # fmt: skip

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def write(result: PickResult | None = None, **settings: Any) -> Path:
        folder = RunFolder(tmp_path / "run")
        folder.write(CONFIG, {**SETTINGS, **settings})
        folder.write(RESULT, (result or finished()).to_dict())
        return folder.path

    return write


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo"])
def test_the_paste_for_trl_runs_and_trains_just_the_layer(algorithm: str, run: Run, tmp_path: Path) -> None:
    base = build("qwen3", tmp_path / "base", num_layers=3)
    text = export(run(algorithm=algorithm), "--to", "trl", "--model", base).stdout
    here = f"output_dir={str(tmp_path / 'trained')!r}, report_to=[], save_strategy='no',"
    assert text.count('output_dir="trained",') == 1
    found: dict[str, Any] = {
        "reward": lambda prompts, completion_ids, **_: mean_id(prompts, completion_ids),
        "dataset": Dataset.from_dict({"prompt": ["1+1", "2+2", "3+3"]}),
    }
    exec(text.replace('output_dir="trained",', here), found)
    before, after = (weights_of(AutoModelForCausalLM.from_pretrained(path)) for path in (base, tmp_path / "trained"))
    changed = differing(before, after)
    assert changed and all(name.startswith("model.layers.1.") for name in changed)
    args, trainer = found["args"], found["trainer"]
    assert trainer.state.global_step == 2 and trainer.args.generation_batch_size == 8
    assert (args.learning_rate, args.lr_scheduler_type, args.weight_decay) == (1e-3, "constant", 0)
    assert (args.max_grad_norm, args.max_completion_length) == (1.0, 4)
    assert {name: getattr(args, name) for name in LOSS[algorithm]} == LOSS[algorithm]


def test_the_paste_of_a_run_on_own_data_needs_nothing_else(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sums.csv").write_text("question,answer\n" + "".join(f"{a}+{a},0{a}\n" for a in range(64)))
    (tmp_path / "mine.py").write_text(
        "def dense(completion_ids, answer, **_):\n    assert all(each[0] == '0' for each in answer)\n"
        "    return [sum(ids) / len(ids) / 100 for ids in completion_ids]\n"
        "def short(completions, **_):\n    return [1 / (1 + len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    own = {"reward": ["mine.py:dense", "mine.py:short"], "reward_weights": [1.0, 0.2], "task": "math"}
    folder = run(replace(finished(), task="sums"), **own, data="sums.csv", columns=[["prompt", "question"]], split=None)
    text = export(folder, "--to", "trl", "--model", build("qwen3", tmp_path / "base", num_layers=3)).stdout
    assert "the run was grpo on sums with" in text
    found: dict[str, Any] = {}
    exec(text.replace('output_dir="trained",', "output_dir='trained', report_to=[], save_strategy='no',"), found)
    assert found["trainer"].reward_func_names == ["dense", "short"] and found["args"].reward_weights == [1.0, 0.2]


def test_a_run_says_what_it_knows(run: Run) -> None:
    text = export(run(replace(finished(), tied_layers=(1, 2), verdict="tied")), "--to", "axolotl").stdout
    assert "- '^model.layers.1.'" in text and "learning_rate: 0.001" in text
    assert "# The run could not tell these apart: layers 1 and 2." in text
    until = replace(finished(), status="incomplete", trained_layers=None, trained_score=None, gain=None)
    assert "stopped before its training: layer 1 is the choice so far" in export(run(until), "--to", "axolotl").stdout
    other = export(run(), "--to", "axolotl", "--layers", "-1").stdout
    assert "layers.7." in other and "none was looked for" in other and "learning_rate:" not in other
    assert "0.001 was found for LoRA adapters" in export(run(adapter="lora"), "--to", "axolotl").stdout
    whole = replace(finished(), num_layers=8, best_layers=tuple(range(8)), trained_layers=tuple(range(8)))
    assert "Embeddings, final norm and head are not" in export(run(whole, layers="full"), "--to", "axolotl").stdout


def test_no_run_is_needed() -> None:
    text = export("--model", "tiny", "--layers", "0-2,5", "--to", "regex").stdout
    assert r"'^model\.layers\.(?:0|1|2|5)\.'" in text


def test_a_run_without_a_layer_is_refused(run: Run, tmp_path: Path) -> None:
    nothing = replace(
        finished(), status="incomplete", best_layers=None, tied_layers=None, trained_layers=None, verdict=None,
        trained_score=None, gain=None, ranking=None, baselines=None,
    )  # fmt: skip
    failure = export(run(nothing), "--to", "trl").exception
    assert isinstance(failure, RunFolderError) and "has chosen no layer" in str(failure)
    RunFolder(tmp_path / "half").write(CALIBRATION, {"status": "ok"})
    failure = export(tmp_path / "half", "--to", "trl").exception
    assert isinstance(failure, RunFolderError) and "is not finished" in str(failure)


def test_the_model_is_the_one_that_the_run_was_given(run: Run) -> None:
    """A result names a GGUF file, and `smollm2` without the Hub, with how its weights were quantized."""
    folder = run(replace(finished(), model="tiny (GGUF Q4_1, dequantized)"), model="tiny")
    assert "# layer 1 of 8 of tiny, for trl\n" in export(folder, "--to", "trl").stdout


def test_a_model_that_is_gone_is_named(run: Run) -> None:
    failure = export(run(replace(finished(), model="./gone")), "--to", "trl").exception
    assert isinstance(failure, ModelError) and "./gone does not exist" in str(failure)
    assert isinstance(export("--to", "trl", "--model", "tiny").exception, ConfigError)
