"""Base class of all settings: a frozen pydantic model whose validation errors are messages for the user.

A message names the option, the value, and the valid values, which follow from the field's type. All problems are
collected and raised as one ConfigError.
"""

from __future__ import annotations

import math
import types
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from autolayer.core.errors import AutolayerError, ConfigError, did_you_mean, one_of

Count = Annotated[int, annotated_types.Gt(0)]
Positive = Annotated[float, annotated_types.Gt(0)]
NonNegative = Annotated[float, annotated_types.Ge(0)]
Share = Annotated[float, annotated_types.Gt(0), annotated_types.Le(1)]
OpenShare = Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)]


class Settings(BaseModel):
    """A set of named settings. An int is accepted as a float; no other value is converted."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    table: ClassVar[str | None] = None
    """Name of the table of a --config file that holds these settings; None for the top level."""

    if not TYPE_CHECKING:  # type checkers read the arguments from the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems = [_message(type(self), dict(problem)) for problem in error.errors()]
                raise ConfigError(" ".join(problems)) from None

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed. The copy is checked like a new one."""
        return type(self)(**{**dict(self), **changes})


def wanted(field: FieldInfo) -> str:
    """Describes the valid values of a field: "a whole number above 0", "grpo, dr_grpo or gigpo"."""
    kind, bounds = value_type(field)
    if get_origin(kind) is Literal:
        return one_of(get_args(kind))
    comparisons = {"gt": "above", "ge": "of at least", "lt": "below", "le": "up to"}
    limits = {name: getattr(bound, name) for bound in bounds for name in comparisons if hasattr(bound, name)}
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, "a table")
    if {"ge", "le"} <= limits.keys():
        return f"{words} from {limits['ge']} to {limits['le']}"
    bounds_text = " and ".join(f"{text} {limits[name]}" for name, text in comparisons.items() if name in limits)
    return f"{words} {bounds_text}".rstrip()


def value_type(field: FieldInfo) -> tuple[Any, list[Any]]:
    """Returns the type of a field without None, and the bounds on its value."""
    kind, metadata = field.annotation, list(field.metadata)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        metadata += inner
    bounds = (annotated_types.Gt, annotated_types.Ge, annotated_types.Lt, annotated_types.Le)
    return kind, [each for each in metadata if isinstance(each, bounds)]


def _message(cls: type[Settings], problem: dict[str, Any]) -> str:
    """Returns the message for one of pydantic's errors."""
    error = problem.get("ctx", {}).get("error")
    if isinstance(error, AutolayerError):  # one of our own validators raised it
        return str(error)
    if not problem["loc"]:
        return f"{problem['msg']}."
    name, value = str(problem["loc"][0]), problem["input"]
    fields = cls.model_fields
    if problem["type"] == "extra_forbidden":
        known = ", ".join(fields)
        table = f"[{cls.table}] " if cls.table else ""
        return f"unknown {table}setting '{name}'.{did_you_mean(name, fields)} Known settings: {known}."
    if problem["type"] == "missing":
        return f"{option(cls, name)} is missing: give {wanted(fields[name])}."
    expected, close = wanted(fields[name]), ""
    if isinstance(value, float) and not math.isfinite(value):
        expected = expected.replace("a ", "a finite ", 1)
    if problem["type"] == "literal_error":
        close = did_you_mean(value, get_args(value_type(fields[name])[0]))
    return f"{option(cls, name)} {value!r} cannot work: give {expected}.{close}"


def option(cls: type[Settings], name: str) -> str:
    """Returns a setting as the user writes it: --group-size, or [probe] share =."""
    return f"[{cls.table}] {name} =" if cls.table else "--" + name.replace("_", "-")
