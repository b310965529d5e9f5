"""result.json: the schema, the records, and that the two say the same."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import jsonschema
import numpy
import pytest
from result_helpers import finished

from autolayer.core.config import ALGORITHMS
from autolayer.core.errors import RunFolderError
from autolayer.reporting import results
from autolayer.reporting.results import Baseline, Gain, PickResult, RankingRow, Rung, SetRow, StageCost, SuiteScore

CALIBRATED_ONLY = PickResult(
    status="incomplete", model="tiny", task="math:arith", algorithm="grpo", num_layers=3, candidates=(0, 1, 2), seed=0,
    signature="0123456789",
)  # fmt: skip


@pytest.mark.parametrize("result", [finished(), CALIBRATED_ONLY])
def test_a_result_survives_json(result: PickResult) -> None:
    results.validate(result.to_dict())
    assert results.from_dict(json.loads(result.to_json())) == result


def test_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(results.schema())
    assert results.schema()["properties"]["schema_version"]["const"] == results.RESULT_SCHEMA_VERSION


@pytest.mark.parametrize(
    ("record", "path"),
    [
        (PickResult, ()),
        (RankingRow, ("ranking", "items")),
        (SetRow, ("sets", "items")),
        (Rung, ("ranking", "items", "properties", "rungs", "items")),
        (Gain, ("gain",)),
        (SuiteScore, ("suites", "additionalProperties")),
        (Baseline, ("baselines", "additionalProperties")),
        (StageCost, ("cost", "additionalProperties")),
    ],
)
def test_records_and_schema_name_the_same_fields(record: type, path: tuple[str, ...]) -> None:
    part: dict[str, Any] = results.schema()
    for step in ("properties", *path) if path else ():
        part = part[step]
    assert list(part["properties"]) == [field.name for field in dataclasses.fields(record)]
    later = {"notes", "suites", "sets", "reward_metrics"}
    assert set(part["required"]) >= set(part["properties"]) - later
    assert part["additionalProperties"] is False


def test_every_field_is_described() -> None:
    def walk(part: Any) -> None:
        if isinstance(part, dict):
            for name, field in part.get("properties", {}).items():
                assert len(field["description"]) > 10, name
            for inner in part.values():
                walk(inner)

    walk(results.schema())


def test_schema_knows_every_algorithm() -> None:
    assert set(ALGORITHMS) <= set(results.schema()["properties"]["algorithm"]["enum"])


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("base_score",), float("nan"), "/base_score: nan is not finite"),
        (("ranking", 0, "measured"), float("inf"), "/ranking/0/measured: inf is not finite"),
        (("verdict",), "maybe", "/verdict: 'maybe' is not one of"),
        (("status",), "done", "/status: 'done' is not one of"),
        (("algorithm",), "ppo", "/algorithm: 'ppo' is not one of"),
        (("extra",), 1, "Additional properties are not allowed"),
        (("ranking", 0, "extra"), 1, "Additional properties are not allowed"),
        (("candidates",), [0, 1], "the candidates are [0, 1]"),
        (("ranking", 0, "probability_best"), 0.001, "the most probable layer must come first"),
        (("best_layers",), [-1], "/best_layers/0: -1 is less than the minimum of 0"),
    ],
)
def test_what_is_no_result_is_refused(path: tuple[Any, ...], value: Any, complaint: str) -> None:
    broken: Any = copy.deepcopy(finished().to_dict())
    inner = broken
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError) as error:
        results.validate(broken)
    assert complaint in str(error.value)
    with pytest.raises(RunFolderError):
        results.from_dict(broken)


def test_missing_fields_are_named() -> None:
    broken = finished().to_dict()
    del broken["seed"]
    with pytest.raises(RunFolderError, match="'seed' is a required property"):
        results.from_dict(broken)


def test_numpy_numbers_become_plain() -> None:
    result = dataclasses.replace(finished(), base_score=numpy.float32(0.5), best_layers=[numpy.int64(1)])
    assert json.loads(result.to_json())["best_layers"] == [1]
    assert result.to_dict()["base_score"] == 0.5


def test_json_is_the_text_of_the_file(tmp_path: Any) -> None:
    from autolayer.core.run_folder import RESULT, RunFolder

    folder = RunFolder(tmp_path)
    folder.write(RESULT, finished().to_dict())
    assert (folder / RESULT).read_text() == finished().to_json() + "\n"
