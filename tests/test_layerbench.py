"""LayerBench's languages, bases, stored results and tables. Run: pytest tests/test_layerbench.py"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from autolayer.contribution import Contribution
from autolayer.layers import parse_layers
from autolayer.models import load_model

FOLDER = Path(__file__).parents[1] / "examples" / "layerbench"
sys.path.append(str(FOLDER))

import bases as layerbench_bases  # noqa: E402
from environments import ENVIRONMENTS, RATES  # noqa: E402
from languages import LANGUAGES  # noqa: E402

RESULTS = sorted((FOLDER / "results").glob("*.json"))


@pytest.mark.parametrize("name", LANGUAGES)
def test_writers_sometimes_mean_what_the_reward_wants(name: str) -> None:
    """Else RL would have nothing to find; and not always, else it would have nothing to gain."""
    language = LANGUAGES[name]
    answers = [(language.problem(random.Random(seed)), language.problem(random.Random(seed))) for seed in range(50)]
    assert all(first == second for first, second in answers), "the same seed gives the same problem"
    wanted = dict(language.problem(random.Random(seed)) for seed in range(4000))
    lines = [language.corpus(random.Random(seed)) for seed in range(60_000)]
    hits = [answer == wanted[prompt] for prompt, answer in lines if prompt in wanted]
    if len(hits) >= 30:  # languages with longer lines hardly ever repeat one
        assert 0.1 < sum(hits) / len(hits) < 0.9
    assert all(len(answer) < language.max_new_tokens for answer in wanted.values()), "room for the end of the text"


@pytest.mark.parametrize("name", sorted({environment.task for environment in ENVIRONMENTS.values()}))
def test_tasks_have_four_disjoint_splits_and_score_their_own_answers(name: str) -> None:
    import tasks  # LayerBench's

    task = tasks.make(name)
    assert {split: len(rows) for split, rows in task.splits.items()}.items() >= {"eval": 1024, "select": 512}.items()
    rows = list(task.splits["eval"][:5])
    assert task.score(rows, [row["answer"] for row in rows]) == [1.0] * 5
    assert task.score(rows, ["!"] * 5) == [0.0] * 5


@pytest.mark.slow
def test_a_base_is_pretrained_into_a_folder_that_the_tool_loads(tmp_path: Path) -> None:
    from dataclasses import replace

    base = replace(layerbench_bases.BASES["gap-qwen3"], steps=3, batch=8)
    layerbench_bases.pretrain(base, tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"))
    assert loaded.num_layers == base.layers and loaded.model.num_parameters() < 2_000_000
    kinds = loaded.model.config.layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == list(base.wide or ())


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_stored_results_are_contributions_worth_having(path: Path) -> None:
    found = Contribution.from_dict(json.loads(path.read_text())["contribution"])
    assert path.stem in ENVIRONMENTS and found.steps == ENVIRONMENTS[path.stem].steps
    error = (found.full.high - found.full.low) / (2 * 1.96)
    assert found.full.value > 0.1 and found.full.value > 5 * error, "full RL has to gain .10 and five standard errors"
    assert found.rates == RATES and len(found.seeds) >= 3
    assert list(found.layers) == list(parse_layers(ENVIRONMENTS[path.stem].layers, found.num_layers, path.stem))


@pytest.mark.slow
def test_the_tables_are_made_from_the_stored_results() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "table.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {row["name"] for row in json.loads(done.stdout)} == {
        path.stem for path in RESULTS if not ENVIRONMENTS[path.stem].sealed
    }
