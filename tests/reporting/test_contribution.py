"""contribution.json: what its records accept, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from result_helpers import record

from autolayer.core.errors import DataError
from autolayer.reporting import contribution


@pytest.mark.parametrize("changes", [{}, {"seeds": (5, 6)}, {"seed_sd": None, "ceiling": None}, {"probes": {}}])
def test_a_record_survives_the_file(changes: dict[str, Any], tmp_path: Path) -> None:
    contribution.validate(record(**changes).to_dict())
    (tmp_path / contribution.CONTRIBUTION_FILE).write_text(json.dumps(record(**changes).to_dict()))
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
    (tmp_path / contribution.CONTRIBUTION_FILE).write_text(text)
    with pytest.raises(DataError, match=r"is no contribution\.json"):
        contribution.read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        contribution.read(tmp_path / "nowhere")
