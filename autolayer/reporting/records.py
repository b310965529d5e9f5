"""Records that are written as JSON: the kinds of their fields, checks, and the JSON Schema that is made from them.

A record is a frozen dataclass whose `__pydantic_config__` is `RECORD`. Its annotations and the texts below its fields
are the only definition: pydantic checks files by them and makes the published schemas (`make schemas`).
"""

import functools
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import annotated_types
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

Record = TypeVar("Record")
RECORD = ConfigDict(
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
    json_schema_serialization_defaults_required=True,
)


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("an item is there twice")
    return tuple(values)


LayerIndex = Annotated[int, annotated_types.Ge(0)]
LayerIndices = Annotated[
    Sequence[LayerIndex], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})
]
"""A tuple of different layers once read."""
Texts = Annotated[Sequence[str], AfterValidator(tuple)]
NonNegativeInt = Annotated[int, annotated_types.Ge(0)]
Proportion = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)]


def make_schema(record: type, title: str, description: str) -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a record as it is written.

    Args:
        record: The dataclass of the whole file.
        title: Title of the schema.
        description: What the file holds, in a sentence or two.
    """
    made = _adapter(record).json_schema(mode="serialization", schema_generator=_Untitled)
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "description": description}
    return {**about, **{name: _one_line(part) for name, part in made.items() if name not in about}}


def parse_record(record: type[Record], values: Any) -> Record:
    """Builds a record from the plain values of a JSON file.

    Raises:
        ValidationError: They do not fit the record.
    """
    return _adapter(record).validate_json(json.dumps(values))


def problems_of(record: type, values: Any) -> list[str]:
    """Returns every place where values do not fit a record, as '/ranking/0/layer: why'."""
    try:
        parse_record(record, values)
    except ValidationError as error:
        return [f"/{'/'.join(map(str, each['loc']))}: {each['msg']} ({_short(each)})" for each in error.errors()]
    return []


def to_plain(value: Any) -> Any:
    """Returns a value with lists for tuples and Python's numbers for numpy's, since json.dumps knows neither."""
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes from the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _one_line(part: Any) -> Any:
    """Joins the lines of every description in a schema."""
    if isinstance(part, list):
        return [_one_line(each) for each in part]
    if not isinstance(part, dict):
        return part
    joined = {name: _one_line(each) for name, each in part.items()}
    if isinstance(part.get("description"), str):
        joined["description"] = " ".join(part["description"].split())
    return joined


@functools.cache
def _adapter(record: type) -> TypeAdapter[Any]:
    return TypeAdapter(record)


def _short(problem: Any) -> str:
    text = "missing" if problem["type"] == "missing" else repr(problem["input"])
    return text if len(text) <= 80 else f"{text[:77]}..."
