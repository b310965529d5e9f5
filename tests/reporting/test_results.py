"""result.json: what its records accept, and what they refuse."""

import copy
import dataclasses
import json
from typing import Any

import pytest
from result_helpers import finished

from autolayer.core.errors import DataError
from autolayer.reporting.results import PickResult

CALIBRATED_ONLY = PickResult(
    status="incomplete", model="tiny", task="math:arith", algorithm="grpo", num_layers=3, candidates=(0, 1, 2), seed=0,
    signature="0123456789",
)  # fmt: skip


@pytest.mark.parametrize("result", [finished(), CALIBRATED_ONLY])
def test_a_result_survives_json(result: PickResult) -> None:
    assert PickResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("base_score",), float("nan"), "/base_score: Input should be a finite number (nan)"),
        (("ranking", 0, "measured"), float("inf"), "/ranking/0/measured: Input should be a finite number (inf)"),
        (("verdict",), "maybe", "/verdict: Input should be 'clear', 'tied' or 'budget_spent'"),
        (("status",), "done", "/status: Input should be 'ok', 'incomplete' or 'prior'"),
        (("algorithm",), "ppo", "/algorithm: Input should be 'grpo', 'dr_grpo' or 'gigpo'"),
        (("extra",), 1, "/extra: Unexpected keyword argument"),
        (("ranking", 0, "extra"), 1, "/ranking/0/extra: Unexpected keyword argument"),
        (("candidates",), [0, 1], "the candidates are [0, 1]"),
        (("best_layers",), [99], "it names the layers [99] of a model with 3"),
        (("tied_layers",), [1, 3], "it names the layers [3] of a model with 3"),
        (("ranking", 0, "probability_best"), 0.001, "the most probable layer must come first"),
        (("best_layers",), [-1], "/best_layers/0: Input should be greater than or equal to 0 (-1)"),
        (("best_layers",), [1, 1], "/best_layers: Value error, an item is there twice"),
        (("seed",), "0", "/seed: Input should be a valid integer"),
    ],
)
def test_what_is_no_result_is_refused(path: tuple[Any, ...], value: Any, complaint: str) -> None:
    broken: Any = copy.deepcopy(finished().to_dict())
    inner = broken
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(DataError) as error:
        PickResult.from_dict(broken)
    assert complaint in str(error.value) and str(error.value).startswith("this is no result.json of autolayer")


def test_missing_fields_are_named() -> None:
    broken = finished().to_dict()
    del broken["seed"]
    with pytest.raises(DataError, match="/seed: Field required"):
        PickResult.from_dict(broken)


@pytest.mark.parametrize("change", [{"base_score": float("nan")}, {"best_layers": (99,)}, {"seed": True}])
def test_a_result_is_checked_when_it_is_built(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(finished(), **change)


def test_json_is_the_text_of_the_file(tmp_path: Any) -> None:
    from autolayer.core.run_folder import RESULT, RunFolder

    folder = RunFolder(tmp_path)
    folder.write(RESULT, finished().to_dict())
    assert (folder / RESULT).read_text() == json.dumps(finished().to_dict(), indent=1) + "\n"
