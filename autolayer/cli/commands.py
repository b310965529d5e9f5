"""The commands of the command line. Each reads its options, makes one library call and prints the result.

Cheap checks run before torch is imported, so that a mistyped name is refused at once. The library is imported inside
the commands for the same reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autolayer.cli.evidence_commands import atlas, compare
from autolayer.cli.group import JSON, cli
from autolayer.cli.options import ConfigCommand, read_config, read_values
from autolayer.cli.output import only_stderr, print_found
from autolayer.cli.result_commands import export, merge, push, report
from autolayer.cli.run_commands import measure, pick, train
from autolayer.core.run_folder import RunFolder


@click.command()
def tasks() -> None:
    """List the built-in tasks."""
    from autolayer.tasks import TASKS

    width = max(map(len, TASKS))
    for name, task in TASKS.items():
        click.echo(f"{name:{width}}  {task.description}")
    click.echo("\nYour own task: --data FILE --reward FILE.py:function, or --task FILE.py:NAME.")


@click.command(
    cls=ConfigCommand,
    epilog="\b\nExamples:\n  autolayer doctor\n  autolayer doctor --model Qwen/Qwen3-8B --task math",
)
@JSON
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, **_: Any) -> None:
    """Check this machine and, with --model, whether a run fits.

    Exits with code 2 if something that every run needs is missing.
    """
    from autolayer.core.config import Config

    values = read_values(ctx, {})
    config = read_config(ctx) if "model" in values else None
    checked = config or Config(model="tiny", **values)  # without a model, the other options must be valid all the same
    if checked.out is not None:
        RunFolder(checked.out).check()
    with only_stderr():
        from autolayer.cli.doctor import diagnose

        found = diagnose(config, folder=Path(checked.out or "."))
    print_found(found, as_json)
    if not found.is_well:
        ctx.exit(2)


for command in (pick, train, measure, compare, atlas, report, export, merge, push, tasks, doctor):
    cli.add_command(command)  # --help keeps this order
