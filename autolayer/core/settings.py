"""Base class of all settings: a frozen pydantic model whose validation errors become one ConfigError in sentences."""

import reprlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args

import annotated_types
from pydantic import BaseModel, ConfigDict, ValidationError

from autolayer.core.errors import AutolayerError, ConfigError, did_you_mean

Count = Annotated[int, annotated_types.Gt(0)]
AtMost = annotated_types.Le(2**31 - 1)
"""The largest whole number of a setting, which every library can hold."""
Size = Annotated[int, annotated_types.Gt(0), AtMost]
Positive = Annotated[float, annotated_types.Gt(0)]
LearningRate = Annotated[float, annotated_types.Gt(0), annotated_types.Le(1)]
"""Adam moves every weight by about the rate in each step, so a larger one leaves nothing of the model."""
NonNegative = Annotated[float, annotated_types.Ge(0)]
Share = Annotated[float, annotated_types.Gt(0), annotated_types.Le(1)]
OpenShare = Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)]
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Settings(BaseModel):
    """A set of named settings. An int is accepted as a float; no other value is converted."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        str_min_length=1,
        use_attribute_docstrings=True,
    )
    table: ClassVar[str | None] = None
    """Name of the table of a --config file that holds these settings; None for the top level."""

    if not TYPE_CHECKING:  # type checkers read the arguments from the fields

        def __init__(self, /, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems = [self._message(dict(problem)) for problem in error.errors()]
                raise ConfigError(" ".join(problems)) from None

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed. The copy is checked like a new one."""
        return type(self)(**{**dict(self), **changes})

    @classmethod
    def _message(cls, problem: dict[str, Any]) -> str:
        error = problem.get("ctx", {}).get("error")
        if isinstance(error, AutolayerError):  # one of our own validators raised it
            return str(error)
        name, fields = str(problem["loc"][0]), cls.model_fields
        table = f"[{cls.table}] " if cls.table else ""
        if problem["type"] == "extra_forbidden":
            known = ", ".join(fields)
            return f"unknown {table}setting '{name}'.{did_you_mean(name, fields)} Known settings: {known}."
        option = f"{table}{name} =" if table else "--" + name.replace("_", "-")
        if problem["type"] == "missing":
            return f"{option} is missing. {fields[name].description}"
        expected, close = problem["msg"].removeprefix("Input ").removeprefix("String "), ""
        if problem["type"] == "literal_error":
            close = did_you_mean(problem["input"], map(str, get_args(fields[name].annotation)))
        return f"{option} {_SHORT.repr(problem['input'])} cannot work: it {expected}.{close}"
