"""`pick --budget 0`: an answer from depth alone, without weights, which says that nothing was measured."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

import autolayer
from autolayer.cli.commands import cli
from autolayer.comparison.compare import compare
from autolayer.core import depth_prior
from autolayer.core.config import Config
from autolayer.core.errors import AutolayerError, ConfigError, LayerError, RunFolderError
from autolayer.core.run_folder import RunFolder
from autolayer.models import loading
from autolayer.pipeline import depth_answer, outputs
from autolayer.pipeline.checks import check_options
from autolayer.pipeline.depth_answer import answer_from_depth
from autolayer.pipeline.dry_run import plan_run
from autolayer.reporting.results import PickResult
from autolayer.reporting.schemas import published_schemas


@pytest.fixture
def big(tmp_path: Path) -> str:
    """A folder with the config.json of Qwen3-1.7B and nothing else: no weights, no tokenizer."""
    values = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2048, "num_hidden_layers": 28,
        "intermediate_size": 6144, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(values))
    return str(tmp_path / "big")


def test_the_answer_is_the_prior_and_nothing_else(big: str, tmp_path: Path) -> None:
    found = answer_from_depth(Config(model=big, budget=0, out=str(tmp_path / "run")))
    assert found.status == "prior" and found.best_layers == (12,) and found.tied_layers == (10, 11, 12, 13, 14, 15)
    assert found.num_layers == 28 and [row.layer for row in found.ranking or ()][0] == 12
    wanted = depth_prior.predicted(range(28), 28)
    assert {row.layer: row.predicted for row in found.ranking or ()} == pytest.approx(dict(enumerate(wanted)))
    for name in (
        "verdict",
        "base_score",
        "trained_score",
        "gain",
        "trained_layers",
        "learning_rate",
        "probes",
        "suites",
    ):
        assert getattr(found, name) is None, name
    measured = {row.measured for row in found.ranking or ()} | {row.probability_best for row in found.ranking or ()}
    assert measured == {None} and not any(row.rungs for row in found.ranking or ())
    assert found.cost == {} and found.cost_share_of_full_run == 0
    assert found.expected_regret == depth_prior.REGRET[0]
    assert any("nothing was measured" in note for note in found.notes)
    assert any("lost 0.01 to 0.10 of the full gain" in note for note in found.notes)
    assert not any("parameters" in note for note in found.notes)


def test_its_files_are_valid_and_can_be_judged(big: str, tmp_path: Path) -> None:
    found = answer_from_depth(Config(model=big, budget=0, out=str(tmp_path / "run")))
    values = json.loads((tmp_path / "run" / "result.json").read_text())
    Draft202012Validator(published_schemas()["result.schema.json"]).validate(values)
    assert PickResult.read(tmp_path / "run") == found
    assert "by depth alone: nothing was measured" in (tmp_path / "run" / "report.html").read_text()
    (judged,) = compare(tmp_path / "run", "published:qwen3-1.7b-8k").comparisons
    assert (judged.rows[0].auc_best or 0) > 0.9 and judged.rows[0].picks == (12,)


def test_a_page_that_fails_costs_no_result(big: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(depth_answer, "html_page", failing)
    monkeypatch.setattr(outputs, "html_page", failing)
    with pytest.raises(RuntimeError):
        answer_from_depth(Config(model=big, budget=0, out=str(tmp_path / "run")))
    found, again = PickResult.read(tmp_path / "run"), tmp_path / "again"
    run: Any = SimpleNamespace(
        folder=RunFolder(again), bench=SimpleNamespace(process_group=SimpleNamespace(on_rank_0=lambda work: work()))
    )
    with pytest.raises(RuntimeError):
        outputs.save_result(run, found)
    assert PickResult.read(again) == found


def test_no_weights_are_read(big: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_read_weights", refuse)
    assert answer_from_depth(Config(model=big, budget=0, out=str(tmp_path / "run"))).status == "prior"


def test_the_command_prints_it_and_exits_with_0(big: str, tmp_path: Path) -> None:
    arguments = ["pick", "--model", big, "--budget", "0", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "Layer 12 of 28 by depth alone: nothing was measured." in text and "layers 10-15" in text
    assert "--budget 0.1" in text and "autolayer train --layers 12" in text
    again = CliRunner().invoke(cli, [*arguments, "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout)["status"] == "prior"


def test_a_small_model_is_told_that_depth_tells_it_nothing(tmp_path: Path) -> None:
    found = answer_from_depth(
        Config(model="tiny", task="math:arith", budget=0, layers="0-2", out=str(tmp_path / "run"))
    )
    assert found.candidates == (0, 1, 2) and found.best_layers == (2,)
    assert any("parameters: below 100.0M depth tells nothing" in note for note in found.notes)


def test_what_needs_a_budget_is_refused(big: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": big, "budget": 0, "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="--until probe needs a budget"):
        autolayer.pick(**given, until="probe")
    with pytest.raises(ConfigError, match="--top-k 2 needs a budget"):
        autolayer.pick(**given, top_k=2)
    with pytest.raises(LayerError, match="layer 28 does not exist"):
        autolayer.pick(**given, layers=28)
    with pytest.raises(ConfigError, match="nothing to plan"):
        plan_run(Config(**given))
    with pytest.raises(ConfigError, match="--budget 0 belongs to `pick`"):
        check_options(Config(**given, layers="1"), "train", (1,), loading.meta_model("tiny"))
    with pytest.raises(AutolayerError, match="--budget -0.1 cannot work"):
        Config(model=big, budget=-0.1)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_left_alone(big: str, tmp_path: Path) -> None:
    answer_from_depth(Config(model=big, budget=0, out=str(tmp_path / "run")))
    before = (tmp_path / "run" / "result.json").read_text()
    with pytest.raises(RunFolderError, match="another configuration"):
        answer_from_depth(Config(model=big, budget=0, seed=1, out=str(tmp_path / "run")))
    assert (tmp_path / "run" / "result.json").read_text() == before


def test_the_band_is_what_regret_allows(big: str, tmp_path: Path) -> None:
    predicted_L = depth_prior.predicted(range(28), 28)
    found = answer_from_depth(Config(model=big, budget=0, regret=0.2, out=str(tmp_path / "run")))
    assert found.tied_layers == tuple(np.flatnonzero(predicted_L >= predicted_L.max() - 0.2).tolist())
