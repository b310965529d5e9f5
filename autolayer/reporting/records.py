"""Records that are written as JSON: the kinds of their fields, checks, and the JSON Schema that is made from them.

A record is a frozen pydantic dataclass with the configuration `RECORD`. Its annotations and the texts below its fields
are the only definition: pydantic checks every record by them, and makes the published schemas (`make schemas`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import annotated_types
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from autolayer.core.errors import DataError
from autolayer.core.whole_files import NO_FILE, check_digest_beside

Item = TypeVar("Item")
RECORD = ConfigDict(
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
    json_schema_serialization_defaults_required=True,
)
MAX_PLACES = 3
"""Places of a file that a message names."""


def _distinct(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) != len(values):
        raise ValueError("an item is there twice")
    return values


AS_TUPLE = BeforeValidator(lambda values: tuple(values) if isinstance(values, list | range) else values)
Several = Annotated[tuple[Item, ...], AS_TUPLE]
"""A tuple; a list or a range is turned into one."""
OneOrMore = Annotated[tuple[Item, ...], annotated_types.MinLen(1), AS_TUPLE]
LayerIndex = Annotated[int, annotated_types.Ge(0)]
LayerIndices = Annotated[Several[LayerIndex], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
NonNegativeInt = Annotated[int, annotated_types.Ge(0)]
Proportion = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)]


class FileRecord:
    """Base class of a record that is the whole of a JSON file."""

    FILE: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, dicts and numbers, ready for `json.dumps`."""
        return TypeAdapter(type(self)).dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, values: Any, source: object = "this") -> Self:
        """Builds a record from the values of a file, which `source` names in a DataError if they do not fit."""
        return cls.from_json(json.dumps(values), source)

    @classmethod
    def from_json(cls, text: str | bytes, source: object) -> Self:
        """Builds a record from the text of a file, which `source` names in a DataError if it does not fit."""
        try:
            found = TypeAdapter(cls).validate_json(text)
            if isinstance(source, Path):
                check_digest_beside(source)
            return found
        except ValidationError as error:
            cure = "delete it and repeat the command that made it"
            if Path(str(source)).name != cls.FILE:  # a file of the user's own
                cure = f"give a {cls.FILE}, or the run folder that holds it"
            wrong = "; ".join(map(_problem, error.errors()[:MAX_PLACES]))
            raise DataError(f"{source} is no {cls.FILE} of autolayer ({wrong}): {cure}.") from None
        except ValueError as error:
            raise DataError(f"{source} is damaged ({error}): delete it and repeat the command that made it.") from None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads the file, or the one in a run folder; raises DataError if it is missing or does not fit."""
        path = Path(path)
        if path.is_dir():
            path = path / cls.FILE
            if path.exists() and not path.is_file():
                raise DataError(f"{path} is {NO_FILE}: delete it and repeat the command that made it.")
        try:
            return cls.from_json(path.read_bytes(), path)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: give a {cls.FILE}, or the run folder that holds it.") from None


def make_schema(record: type, title: str, description: str) -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a record as it is written."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "description": description}
    return {**about, **TypeAdapter(record).json_schema(mode="serialization"), **about}


def _problem(found: Any) -> str:
    """Returns a problem that pydantic found as '/ranking/0/layer: why (value)'."""
    text = f"/{'/'.join(map(str, found['loc']))}: {found['msg']}"
    if not found["loc"] or found["type"] == "missing":
        return text
    value = repr(found["input"])
    return f"{text} ({value if len(value) <= 80 else value[:77] + '...'})"
