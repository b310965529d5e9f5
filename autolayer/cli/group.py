"""The group of all commands, and the options that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autolayer import __version__
from autolayer.cli.output import print_found

if TYPE_CHECKING:
    from autolayer.reporting.results import PickResult

HELP = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result on stdout as JSON, all else on stderr.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print plan, cost, time and memory, and stop.")


class Commands(click.Group):
    """Lists the commands in the order of their definition, and gives each of them --debug."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Adds a command with the option --debug."""
        cmd.params.append(
            click.Option(["--debug"], is_flag=True, is_eager=True, expose_value=False, help="Show tracebacks.",
                         callback=lambda ctx, _, value: ctx.ensure_object(dict).update(debug=value))
        )  # fmt: skip
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands in the order of their definition."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without shortening their descriptions."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in self.commands.items()])


@click.group(cls=Commands, invoke_without_command=True, context_settings=HELP)
@click.version_option(__version__, message="autolayer %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Finds the transformer layer that RL post-training improves most, and trains it.

    \b
    Start here (minutes on a laptop, nothing is downloaded):
      autolayer pick --model tiny --task math:arith
    """  # noqa: D301  (click needs the backspace character, not a raw string)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def print_result(result: PickResult, folder: Path | None, as_json: bool, show_all: bool = False) -> None:
    """Prints a result: as JSON, or as the report."""
    from autolayer.reporting.terminal import Report

    print_found(result, as_json, Report(result, folder=folder, show_all=show_all))
