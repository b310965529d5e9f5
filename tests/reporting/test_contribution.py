"""contribution.json: what its records accept, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from result_helpers import record

from autolayer.cli.main import main
from autolayer.core.errors import DataError
from autolayer.reporting.contribution import Contribution


@pytest.mark.parametrize("changes", [{}, {"seeds": (5, 6)}, {"seed_sd": None, "ceiling": None}, {"probes": {}}])
def test_a_record_survives_the_file(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / Contribution.FILE).write_text(json.dumps(record(**changes).to_dict()))
    assert Contribution.read(tmp_path) == record(**changes)


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
def test_what_is_no_record_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Contribution.from_dict({**record().to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"num_layers": "8"}, "/num_layers: Input should be a valid integer"),
        ({"base_score": True}, "/base_score"),
        ({"seeds": 3}, "/seeds"),
        ({"layers": [{"layer": "1"}]}, "/layers/1"),
        ({"layers": [1, 2]}, "/layers"),
        ({"full": []}, "/full"),
        ({"probes": {"first": 1.0}}, "/probes/first"),
        ({"best_layers": [99]}, "beyond the 8 of the model"),
    ],
)
def test_wrong_types_are_one_sentence_of_the_command(
    change: dict[str, Any], place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / Contribution.FILE).write_text(json.dumps({**record().to_dict(), **change}))
    with pytest.raises(SystemExit) as leaving:
        main(["compare", "published:qwen3-1.7b", str(tmp_path)])
    assert leaving.value.code == 2
    told = capfd.readouterr().err
    assert place in told and told.count("\n") == 1 and str(tmp_path) in told


def test_a_contribution_is_checked_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="one gain for each seed"):
        record(seeds=(0,))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1}'])
def test_a_file_that_is_no_record_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / Contribution.FILE).write_text(text)
    with pytest.raises(DataError, match=r"is no contribution\.json"):
        Contribution.read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        Contribution.read(tmp_path / "nowhere")
