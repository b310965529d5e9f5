"""Options of the command line, made from the fields of `config.Config`: name, type, default and help text."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import click

from autolayer.core import config


class RateType(click.ParamType):
    """A learning rate, or 'auto' for the searched one (None)."""

    name = "auto|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        return None if value in (None, "auto") else click.FLOAT.convert(value, param, ctx)


class ConfigOption(click.Option):
    """An option made from a field of Config; its help is read from there when somebody asks for it."""

    needs_model = True

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        (field,) = [f for f in dataclasses.fields(config.Config) if f.name == self.name]
        self.help = field_docs()[field.name]
        if field.default is dataclasses.MISSING:
            self.help += "  [required]" if self.needs_model else ""
        elif field.default is not None:
            self.help += f"  [default: {field.default}]"
        return super().get_help_record(ctx)


class OptionalOption(ConfigOption):
    """Of a command that does something without a model, too."""

    needs_model = False


@functools.cache
def field_docs() -> dict[str, str]:
    """The line of explanation under every field of Config."""
    (definition,) = ast.parse(inspect.getsource(config.Config)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        line.target.id: inspect.cleandoc(below.value.value)
        for line, below in pairwise(definition.body)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def config_options(*, leave_out: tuple[str, ...] = (), needs_model: bool = True) -> Callable[[Callable], Callable]:
    """Gives a command one option per field of Config."""
    kind_of_option = ConfigOption if needs_model else OptionalOption
    types = {"str": click.STRING, "int": click.INT, "float": click.FLOAT}

    def add(command: Callable) -> Callable:
        for field in reversed(dataclasses.fields(config.Config)):
            if field.name in config.TABLES or field.name in leave_out:
                continue
            name, kind = "--" + field.name.replace("_", "-"), str(field.type).removesuffix(" | None")
            if kind == "bool":
                command = click.option(f"{name}/--no-{name[2:]}", cls=kind_of_option, default=None)(command)
            else:
                kind = RateType() if field.name == "learning_rate" else types[kind]
                command = click.option(name, cls=kind_of_option, type=kind)(command)
        tables = f"TOML file with any of these settings, and {', '.join(f'[{name}]' for name in config.TABLES)}."
        return click.option("--config", "toml", metavar="FILE", help=tables)(command)

    return add
