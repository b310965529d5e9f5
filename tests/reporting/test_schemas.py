"""The published JSON Schemas are the ones that the records make, and they say what the records check."""

from importlib import resources
from typing import Any

import jsonschema
import pytest
from result_helpers import finished, record

from autolayer.reporting import schemas

WRITTEN = {"result.schema.json": finished().to_dict(), "contribution.schema.json": record().to_dict()}
NAMES = sorted(WRITTEN)


@pytest.mark.parametrize("name", NAMES)
def test_the_published_file_is_the_made_one(name: str) -> None:
    file = resources.files("autolayer.reporting") / name
    assert file.read_text(encoding="utf-8") == schemas.schema_text(schemas.published_schemas()[name]), (
        "run `make schemas`"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_and_accepts_what_is_written(name: str) -> None:
    schema = schemas.published_schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(WRITTEN[name], schema)
    for field in WRITTEN[name]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({each: value for each, value in WRITTEN[name].items() if each != field}, schema)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_described(name: str) -> None:
    def walk(part: Any) -> None:
        if isinstance(part, list):
            for each in part:
                walk(each)
        elif isinstance(part, dict):
            for field, about in part.get("properties", {}).items():
                assert "$ref" in about or len(about["description"]) > 7, field
            for inner in part.values():
                walk(inner)

    walk(schemas.published_schemas()[name])
