"""Options of the command line. Their name, type, choices, default and help text come from the fields of `Config`.

`Config` is imported when a command needs its options, so that `autolayer --help` is fast.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

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
    "Watching": ("track",),
    "Devices and machines": ("device", "dtype", "shard", "storage"),
    "Other": ("split", "columns", "reward_weights", "reward_retries", "accept_changes", "allow_unsandboxed", "debug"),
}  # fmt: skip
"""Headings of `--help` and their options. All other options come first, under "Options"."""

COMMON = ("model", "task", "data", "reward", "layers", "steps", "budget", "seed", "out", "toml", "dry_run", "as_json")
"""Order of the options under "Options"."""

METAVARS = {
    "model": "NAME", "task": "NAME", "data": "PATH", "reward": "FILE.py:FUNCTION", "layers": "LAYERS",
    "out": "FOLDER", "history": "FOLDER", "storage": "URL", "device": "auto|cpu|cuda[:N]",
    "split": "NAME", "columns": "NEW=COLUMN,...", "reward_weights": "A,B,...",
    "learning_rate": "auto|NUMBER", "track": "NAME,...", "rollouts": "auto|transformers|vllm|URL",
}  # fmt: skip


class ConfigOption(click.Option):
    """An option made from a field of `Config`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns the line of the help, without the --no- form of a switch."""
        record = super().get_help_record(ctx)
        if record is None or self.name == "thinking":
            return record
        return record[0].split(" / --no-")[0], record[1]  # --no-... only undoes a switch of the --config file

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Returns the values that begin like `incomplete`; the shell itself completes names of files."""
        if self.name in ("data", "reward", "out", "history"):
            return [CompletionItem(incomplete, type="file")]
        if self.name == "task":
            from autolayer.tasks import TASKS as values
        elif self.name == "model":
            from autolayer.models.names import NAMED as values
        elif self.name == "track":
            from autolayer.core.config import TRACKERS as values
        else:  # such as [grpo|dr_grpo], or auto|NUMBER, whose second part stands for a value
            found = (self.metavar or "").strip("[]").split("|")
            values = [each for each in found if each.isidentifier() and each.islower()] if len(found) > 1 else ()
        return [CompletionItem(each) for each in values if each.startswith(incomplete)]


class ConfigCommand(click.Command):
    """A command with one option per field of `Config` but those in `leave_out`, shown in groups.

    `texts` replaces the help of options that mean something narrower in this command.
    """

    def __init__(
        self, *args: Any, leave_out: tuple[str, ...] = (), texts: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.leave_out, self.texts = leave_out, texts or {}

    @functools.cached_property
    def config_options(self) -> list[click.Option]:
        """The options made from `Config`, and --config itself."""
        from autolayer.core.config import TABLES, Config

        left_out = (*TABLES, *self.leave_out)
        options = [
            _option(name, field, self.texts.get(name))
            for name, field in Config.model_fields.items()
            if name not in left_out
        ]
        tables = ", ".join(f"[{name}]" for name in TABLES)
        file_help = f"TOML file with any of these settings, and the tables {tables}."
        return [*options, click.Option(["--config", "toml"], metavar="FILE", help=file_help)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the options made from `Config`, then those of the command itself."""
        return [*self.config_options, *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options in their groups."""
        found = {param.name or "": param for param in self.get_params(ctx)}
        grouped = {name for names in GROUPS.values() for name in names}
        first = [name for name in (*COMMON, *found) if name in found and name not in grouped]
        for heading, names in {"Options": tuple(dict.fromkeys(first)), **GROUPS}.items():
            records = [found[name].get_help_record(ctx) for name in names if name in found]
            if rows := [record for record in records if record is not None]:
                with formatter.section(heading):
                    formatter.write_dl(rows, col_max=28)


def _option(name: str, field: FieldInfo, text: str | None = None) -> click.Option:
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):  # with None
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    flag, text = "--" + name.replace("_", "-"), " ".join((text or field.description or "").split())
    if kind is bool:
        return ConfigOption([f"{flag}/--no-{flag[2:]}"], default=None, help=text)
    if not field.is_required() and field.default is not None:
        text += f"  [default: {field.default:g}]" if kind is float else f"  [default: {field.default}]"
    choices = f"[{'|'.join(get_args(kind))}]" if get_origin(kind) is Literal else None
    type_, metavar = {int: (click.INT, "N"), float: (click.FLOAT, "NUMBER")}.get(kind, (click.STRING, choices))
    if name == "learning_rate":  # may be 'auto'
        type_ = click.STRING
    if name in ("data", "reward", "track"):
        callback = _only_one if name == "data" else None  # a second one would replace the first without a word
        return ConfigOption([flag], metavar=METAVARS[name], help=text, multiple=True, callback=callback)
    return ConfigOption([flag], type=type_, metavar=METAVARS.get(name, metavar), help=text)


def _only_one(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    if len(values) > 1:
        raise click.UsageError(f"--{option.name} is given {len(values)} times: give one file with all rows.", ctx)
    return values[0] if values else None


def read_config(ctx: click.Context, **tables: dict[str, Any]) -> Config:
    """Returns the settings of a command: options override the --config file, which overrides the defaults.

    Checks the names of model and task, which needs no torch, and sets `out` to the run folder. `tables` are options
    that belong to a table of the --config file.
    """
    from autolayer.core.config import Config

    config = Config(**read_values(ctx, tables))
    from autolayer.pipeline.defaults import check_names

    check_names(config)
    return config.replace(out=str(open_run(config, verb=str(ctx.command.name)).path))


def read_values(ctx: click.Context, tables: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the settings that the options and the --config file give, unchecked; `tables` as in `read_config`."""
    from autolayer.core.config import read_toml

    values = read_toml(ctx.params["toml"]) if ctx.params["toml"] is not None else {}
    options = [option.name for option in ctx.command.get_params(ctx) if isinstance(option, ConfigOption)]
    given = [name for name in options if name and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    values |= {name: ctx.params[name] for name in given}
    for name, table in tables.items():
        if isinstance(in_file := values.get(name, {}), dict):  # anything else is refused by `Config`
            values[name] = {**in_file, **table}
    return values
