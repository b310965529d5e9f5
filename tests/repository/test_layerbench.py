"""LayerBench's languages, bases, stored results and tables."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from autolayer.core.layer_set import parse_layers
from autolayer.models.loading import load_model
from autolayer.probes.known import packaged
from autolayer.reporting.contribution import Contribution

FOLDER = Path(__file__).parents[2] / "examples" / "layerbench"
sys.path.append(str(FOLDER))

import bases as layerbench_bases  # noqa: E402
from bursts import halving  # noqa: E402
from early import at_rates  # noqa: E402
from environments import ENVIRONMENTS, RATES  # noqa: E402
from humps import humps  # noqa: E402
from languages import LANGUAGES  # noqa: E402
from run import known  # noqa: E402

SEALED = {name for name, environment in ENVIRONMENTS.items() if environment.sealed}
RESULTS = sorted((FOLDER / "results").glob("*.json"))


@pytest.mark.parametrize("name", LANGUAGES)
def test_writers_sometimes_mean_what_the_reward_wants(name: str) -> None:
    """Else RL would have nothing to find; and not always, else it would have nothing to gain."""
    language = LANGUAGES[name]
    answers = [(language.problem(random.Random(seed)), language.problem(random.Random(seed))) for seed in range(50)]
    assert all(first == second for first, second in answers), "the same seed gives the same problem"
    problems = [language.problem(random.Random(seed)) for seed in range(4000)]
    wanted = {prompt: answer for prompt, answer in problems}  # noqa: C416  (a Line has any number of parts)
    lines = [language.corpus(random.Random(seed)) for seed in range(60_000)]
    hits = [answer == wanted[prompt] for prompt, answer in lines if prompt in wanted]
    if len(hits) >= 30:  # languages with longer lines hardly ever repeat one
        assert 0.1 < sum(hits) / len(hits) < 0.9
    assert all(len(answer) < language.max_new_tokens for answer in wanted.values()), "room for the end of the text"


@pytest.mark.parametrize("name", sorted({e.task for e in ENVIRONMENTS.values()} & set(LANGUAGES)))
def test_tasks_have_four_disjoint_splits_and_score_their_own_answers(name: str) -> None:
    import tasks  # LayerBench's

    task = tasks.make(name)
    assert {split: len(rows) for split, rows in task.splits.items()}.items() >= {"eval": 1024, "select": 512}.items()
    rows = list(task.splits["eval"][:5])
    assert task.score(rows, [row["answer"] for row in rows]) == [1.0] * 5
    assert task.score(rows, ["!"] * 5) == [0.0] * 5


@pytest.mark.slow
def test_a_base_is_pretrained_into_a_folder_that_the_tool_loads(tmp_path: Path) -> None:
    base = replace(layerbench_bases.BASES["gap-qwen3"], steps=3, batch=8)
    layerbench_bases.pretrain(base, tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"))
    assert loaded.num_layers == base.layers and loaded.model.num_parameters() < 2_000_000
    kinds = loaded.model.config.layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == list(base.wide or ())


def test_early_exits_are_what_shorter_models_of_the_same_weights_lose() -> None:
    base = replace(layerbench_bases.BASES["walk-llama"], layers=4, exits=1)
    tokenizer = layerbench_bases.build_tokenizer()
    model = layerbench_bases.build_model(base, len(tokenizer))
    input_ids, labels = layerbench_bases.encode(tokenizer, [("3aX=", "b"), ("41bLR=", "b")])
    expected, blocks = [], model.model.layers
    for depth in (2, 3, 4):  # after layers 1, 2 and 3
        model.model.layers = blocks[:depth]
        expected.append(model(input_ids=input_ids, labels=labels, use_cache=False).loss.item())
    model.model.layers = blocks
    found = layerbench_bases.loss_of(model, base, input_ids, labels)
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    plain = layerbench_bases.loss_of(model, replace(base, exits=None), input_ids, labels)
    assert plain.item() == pytest.approx(expected[-1], rel=1e-5)


def _measured(gain_L_S: list[list[float]]) -> Contribution:
    stored = json.loads(RESULTS[0].read_text())["contribution"]
    arm = stored["layers"][0]
    layers = [{**arm, "layer": layer, "gains": gains} for layer, gains in enumerate(gain_L_S)]
    full = {**stored["full"], "gains": [0.5, 0.5, 0.5]}
    values = {
        "num_layers": len(layers),
        "layers": layers,
        "best_layers": [],
        "full": full,
        "num_items": 10**9,
        "probes": {},
        "reliability": {},
    }
    return Contribution.from_dict({**stored, **values})


def test_a_hump_is_a_layer_that_beats_three_positions_on_seeds_that_did_not_choose_it() -> None:
    chosen, found = humps(_measured([[0.1, 0.1, 0.1], [0.4, 0.4, 0.4], [0.2, 0.2, 0.2], [0.0, 0.0, 0.0]]))
    assert chosen == [1, 1, 1] and {name: round(ahead, 6) for name, (ahead, _) in found.items()} == {
        "first": 0.6, "middle": 0.4, "last": 0.8,
    }  # fmt: skip
    assert all(low == pytest.approx(ahead, abs=1e-3) for ahead, low in found.values())  # no noise, no interval
    lucky, none = humps(_measured([[0.2, 0.2, 0.2], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.2, 0.2, 0.2]]))
    # On the two seeds that choose it a lucky layer is ahead, .25 to .2; on the third it gains nothing.
    assert lucky == [2, 1, 1] and none["first"][0] == pytest.approx(-0.4) and none["first"][1] < -0.4


def test_the_bound_of_a_hump_is_students() -> None:
    """By hand: residuals +-d, (layers - 1)(seeds - 1) degrees of freedom, a difference of two means."""
    d, full = 0.03, 0.5
    noise = np.array([[d, -d, 0.0], [-d, d, 0.0], [0.0, 0.0, 0.0]])
    _, found = humps(_measured((noise + np.array([[0.1], [0.5], [0.2]])).tolist()))
    variance = 2 * 4 * d**2 / 4 / 3
    reach = stats.t.ppf(0.975, 4) * variance**0.5 / full
    ahead, low = found["first"]
    assert ahead == pytest.approx(0.4 / full) and low == pytest.approx(ahead - reach, abs=1e-3)


def test_halving_takes_the_better_half_and_then_the_best() -> None:
    gain_L_T = np.array([[0.0, 0.9], [0.2, 0.1], [0.3, 0.0], [0.1, 0.8]])
    flat_L_T, prior_L = np.zeros((4, 2)), np.array([0.0, 0.1, 0.0, 0.2])
    assert halving(gain_L_T, flat_L_T, prior_L, 4) == 1  # 2 and 1 are ahead at first, 1 in the end
    assert halving(gain_L_T, flat_L_T, prior_L, 2) == 1  # of 3 and 1, the best predictions, 1 is ahead at first
    assert halving(gain_L_T, flat_L_T, 10 * prior_L, 4) == 1 and halving(gain_L_T, 9 * gain_L_T, prior_L, 4) == 1
    assert halving(0 * gain_L_T, flat_L_T, prior_L, 4) == 3  # nothing but the prediction


def test_rewards_between_measured_rates_are_interpolated_in_the_logarithm() -> None:
    score_L_K = np.array([[0.0, 1.0], [2.0, 4.0]])
    assert at_rates(score_L_K, (1e-4, 1e-2), np.array([1e-3, 1e-1])) == pytest.approx([0.5, 4.0])


def test_the_prediction_ships_with_what_the_results_say() -> None:
    measured = [e for e in ENVIRONMENTS.values() if not e.sealed]
    assert {k.name for k in packaged()} == {e.name for e in measured} == {p.stem for p in RESULTS} - SEALED
    for shipped in packaged():
        stored = known(ENVIRONMENTS[shipped.name])
        assert shipped.base == stored.base and shipped.layers == stored.layers
        assert shipped.contribution_L == pytest.approx(stored.contribution_L, abs=1e-4)
        for mine, theirs in zip(shipped.probings, stored.probings, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(mine[name] == pytest.approx(theirs[name], rel=1e-3) for name in mine)


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
