"""Options of the command line. Their name, type, choices, default and help text come from the fields of `Config`.

`Config` is imported when a command needs its options, so that `autolayer --help` is fast.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from autolayer.core.errors import ConfigError, did_you_mean, one_of
from autolayer.core.run_folder import open_run

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from autolayer.core.config import Config

GROUPS = {
    "Search": ("until", "regret", "top_k", "hours", "history"),
    "Measurement": ("num_seeds", "rates"),
    "Training": (
        "algorithm", "learning_rate", "prompts_per_step", "group_size", "beta", "adapter",
        "activation_checkpointing",
    ),
    "Sampling and evaluation": (
        "rollouts", "temperature", "max_new_tokens", "max_prompt_tokens", "thinking", "num_eval",
    ),
    "Devices and machines": ("device", "shard", "storage"),
    "Other": ("accept_changes", "allow_unsandboxed", "debug"),
}  # fmt: skip
"""Headings of `--help` and their options. All other options come first, under "Options"."""

COMMON = ("model", "task", "data", "reward", "layers", "steps", "budget", "seed", "out", "toml", "dry_run", "as_json")
"""Order of the options under "Options"."""

METAVARS = {
    "model": "NAME", "task": "NAME", "data": "PATH", "reward": "FILE.py:FUNCTION", "layers": "LAYERS",
    "out": "FOLDER", "history": "FOLDER", "storage": "URL", "device": "DEVICE", "learning_rate": "auto|NUMBER",
    "rollouts": "auto|transformers|vllm|URL",
}  # fmt: skip
NUMBERS = {int: "N", float: "NUMBER"}


class Choice(click.Choice):
    """A choice that suggests the nearest value for an unknown one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the value, or raises a ConfigError that names the valid ones."""
        if value not in self.choices:
            close = did_you_mean(value, self.choices)
            raise ConfigError(
                f"{param.opts[0] if param else ''} {value!r} cannot work: give {one_of(self.choices)}.{close}"
            )
        return value


class NumberOrAuto(click.ParamType):
    """A number, or 'auto' (None), which lets the run search for it."""

    name = "auto|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Returns the number, or None for 'auto'."""
        return None if value in (None, "auto") else click.FLOAT.convert(value, param, ctx)


class ConfigOption(click.Option):
    """An option made from a field of `Config`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns the line of the help, without the --no- form of a switch."""
        record = super().get_help_record(ctx)
        if record is None or self.name == "thinking":
            return record
        return record[0].split(" / --no-")[0], record[1]  # --no-... only undoes a switch of the --config file


class ConfigCommand(click.Command):
    """A command with one option per field of `Config`, shown in groups."""

    def __init__(self, *args: Any, leave_out: tuple[str, ...] = (), needs_model: bool = True, **kwargs: Any) -> None:
        """Makes the command.

        Args:
            args: Arguments of `click.Command`.
            leave_out: Fields of `Config` that this command does not use.
            needs_model: True to mark --model as required in the help.
            kwargs: Keyword arguments of `click.Command`.
        """
        super().__init__(*args, **kwargs)
        self.leave_out, self.needs_model = leave_out, needs_model

    @functools.cached_property
    def config_options(self) -> list[click.Parameter]:
        """The options made from `Config`, and --config itself."""
        from autolayer.core.config import TABLES, Config

        fields = {name: field for name, field in Config.model_fields.items() if name not in TABLES}
        tables = ", ".join(f"[{name}]" for name in TABLES)
        made: list[click.Parameter] = [
            _option(name, field, self.needs_model) for name, field in fields.items() if name not in self.leave_out
        ]
        file_help = f"TOML file with any of these settings, and the tables {tables}."
        return [*made, click.Option(["--config", "toml"], metavar="FILE", help=file_help)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the options made from `Config`, then those of the command itself."""
        return [*self.config_options, *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options in their groups."""
        found = {param.name or "": param for param in self.get_params(ctx)}
        grouped = {name for names in GROUPS.values() for name in names}
        first = [name for name in found if name not in grouped]
        first.sort(key=lambda name: COMMON.index(name) if name in COMMON else len(COMMON))
        for heading, names in {"Options": first, **GROUPS}.items():
            records = [found[name].get_help_record(ctx) for name in names if name in found]
            if rows := [record for record in records if record is not None]:
                with formatter.section(heading):
                    formatter.write_dl(rows, col_max=28)


def _option(name: str, field: FieldInfo, needs_model: bool) -> click.Option:
    from autolayer.core.settings import value_type

    kind, _ = value_type(field)
    flag, text = "--" + name.replace("_", "-"), " ".join((field.description or "").split())
    if kind is bool:
        return ConfigOption([f"{flag}/--no-{flag[2:]}"], default=None, help=text)
    types = {int: click.INT, float: click.FLOAT}
    choice = Choice(get_args(kind)) if get_origin(kind) is Literal else types.get(kind, click.STRING)
    if field.is_required():
        text += "  [required]" if needs_model else ""
    elif field.default is not None:
        text += f"  [default: {field.default:g}]" if kind is float else f"  [default: {field.default}]"
    metavar = METAVARS.get(name, NUMBERS.get(kind))
    return ConfigOption([flag], type=NumberOrAuto() if name == "learning_rate" else choice, metavar=metavar, help=text)


def read_config(ctx: click.Context, **tables: dict[str, Any]) -> Config:
    """Returns the settings of a command: options override the --config file, which overrides the defaults.

    Checks the names of model and task, which needs no torch, and sets `out` to the run folder.

    Args:
        ctx: Context of the command.
        tables: Options of the command that belong to a table of the --config file.

    Raises:
        ConfigError: Some settings cannot work, or a name does not exist.
    """
    from autolayer.core.config import Config, read_toml

    values = read_toml(ctx.params["toml"]) if ctx.params["toml"] is not None else {}
    options = [option.name for option in ctx.command.get_params(ctx) if isinstance(option, ConfigOption)]
    given = [name for name in options if name and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    values |= {name: ctx.params[name] for name in given}
    values |= {name: {**values.get(name, {}), **table} for name, table in tables.items()}
    config = Config(**values)
    from autolayer import tasks
    from autolayer.models.names import EMBEDDED, check_name

    check_name(config.model)
    packaged = EMBEDDED.get(config.model)
    tasks.check_name(config, packaged.forms if packaged else None)
    return config.replace(out=str(open_run(config, verb=str(ctx.command.name)).path))
