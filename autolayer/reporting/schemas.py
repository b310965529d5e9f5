"""Writes the published JSON Schemas from the records: `python -m autolayer.reporting.schemas`, or `make schemas`."""

import json
from pathlib import Path
from typing import Any

from autolayer.reporting.contribution import Contribution
from autolayer.reporting.records import make_schema
from autolayer.reporting.results import PickResult


def published_schemas() -> dict[str, dict[str, Any]]:
    """Returns every published file and the schema it holds."""
    return {
        "result.schema.json": make_schema(
            PickResult,
            "autolayer result",
            "result.json: what `autolayer pick` or `autolayer train` found. Numbers are never NaN; what is not known "
            "is null.",
        ),
        "contribution.schema.json": make_schema(
            Contribution,
            "autolayer contribution",
            "contribution.json: the measured contribution of every layer, (S_l - S_base) / (S_full - S_base), written "
            "by `autolayer measure`. Numbers are never NaN; what is not known is null.",
        ),
    }


def schema_text(schema: dict[str, Any]) -> str:
    """Returns the text of a published file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, schema in published_schemas().items():
        Path(__file__).with_name(name).write_text(schema_text(schema), encoding="utf-8")
