"""Writes the published JSON Schemas from the records: `python -m autolayer.reporting.schemas`, or `make schemas`."""

import json
from pathlib import Path
from typing import Any

from autolayer.reporting import contribution, results


def published() -> dict[str, dict[str, Any]]:
    """Returns every published file and the schema it holds."""
    return {"result.schema.json": results.schema(), "contribution.schema.json": contribution.schema()}


def text_of(schema: dict[str, Any]) -> str:
    """Returns the text of a published file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, schema in published().items():
        Path(__file__).with_name(name).write_text(text_of(schema), encoding="utf-8")
