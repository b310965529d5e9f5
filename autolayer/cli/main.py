"""The command line: options in, one library call, report out.

Every option of `pick` and `train` is a field of `config.Config`: its name, type, default and help text are read from
there. What can be checked cheaply is checked before torch is imported, so a mistyped name is answered at once.

Exit codes: 0 for every verdict, 2 for what the user can mend (one sentence on stderr), 1 for a bug of ours, 130 for
Ctrl-C. stdout carries the report, or with --json exactly result.json; everything else goes to stderr.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from autolayer import __version__
from autolayer.cli.options import ConfigOption, config_options
from autolayer.core import config
from autolayer.core.errors import AutolayerError, ConfigError, RanksError, RunFolderError, unknown
from autolayer.core.progress import Progress, num_processes, only_stderr, speaks
from autolayer.core.run_folder import ADAPTER, CALIBRATION, PATCH, RESULT, RunFolder, open_run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autolayer.pipeline.pick import Until
    from autolayer.reporting.results import PickResult

LAST_WORDS = 5.0
"""Seconds that a process which says nothing leaves to the one that speaks."""

HELP = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, *FULL)  # the machine's doing, not ours


class Commands(click.Group):
    """Answers a mistyped command with the nearest one and the list of all."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


json_option = click.option("--json", "as_json", is_flag=True, help="Print result.json on stdout, all else on stderr.")
debug_option = click.option("--debug", is_flag=True, is_eager=True, expose_value=False, help="Show tracebacks.",
                            callback=lambda ctx, _, value: ctx.ensure_object(dict).update(debug=value))  # fmt: skip


@click.group(cls=Commands, invoke_without_command=True, context_settings=HELP)
@click.version_option(__version__, message="autolayer %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Finds the transformer layer that RL post-training improves most, and trains it.

    \b
    Start here (minutes on a laptop, nothing is downloaded):
      autolayer pick --model tiny --task math:arith
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(
    epilog="""Where no default is shown, the model's preset or the task decides; --dry-run shows the values.

    \b
    Examples:
      autolayer pick --model tiny --task math:arith
      autolayer pick --model Qwen/Qwen3-8B --task math --dry-run
      autolayer pick --model ./my-model --data prompts.jsonl --reward reward.py:score
      autolayer pick --model tiny --task math:arith --until probe --json
    """
)
@config_options()
@click.option("--until", type=click.Choice(["calibrate", "probe", "search"]), help="Stop after this stage.")
@click.option("--dry-run", is_flag=True, help="Print plan, cost, time and memory, and stop.")
@json_option
@debug_option
@click.pass_context
def pick(ctx: click.Context, until: Until | None, dry_run: bool, as_json: bool, **_: Any) -> None:
    """Find the layer that RL improves most, and train it.

    Runs calibrate, probe, search and train. The same command resumes a run that was interrupted.
    """
    settings = _settings(ctx)
    if dry_run:
        with only_stderr(), Progress().stage("plan", None):
            from autolayer.pipeline.dry_run import plan_run

            plan = plan_run(settings)
        return _print(json.dumps(plan.to_dict(), indent=1), plan.render(), as_json)
    with only_stderr():
        from autolayer.pipeline.pick import pick

        result = pick(settings, until=until, progress=Progress())
    _show(result, Path(settings.out or ""), as_json)


@cli.command(epilog="\b\nExamples:\n  autolayer train --model tiny --task math:arith --layers 2\n"
             "  autolayer train --model Qwen/Qwen3-8B --task math --layers 16-18 --learning-rate 3e-6")  # fmt: skip
@config_options(leave_out=("budget", "regret", "storage", "top_k", "boost"))  # they steer the search; here is none
@json_option
@debug_option
@click.pass_context
def train(ctx: click.Context, as_json: bool, **_: Any) -> None:
    """Train the layers you name, without searching."""
    settings = _settings(ctx)
    if settings.layers is None:
        raise ConfigError("--layers is missing: name what is trained (16, 10-14 or 8,16), or let `pick` find it.")
    with only_stderr():
        from autolayer.pipeline.pick import train_layer

        result = train_layer(settings, progress=Progress())
    _show(result, Path(settings.out or ""), as_json)


@cli.command(
    epilog="""\b
    Examples:
      autolayer measure --model tiny --task math:arith
      autolayer measure --model tiny --task math:arith --layers 0,3-5 --num-seeds 2 --rates 1e-3,3e-3
      autolayer measure --model Qwen/Qwen3-8B --task math --dry-run
    """
)
@config_options(leave_out=("regret", "storage", "hours", "top_k", "boost", "adapter"))  # here is no search
@click.option(
    "--num-seeds", type=click.INT, help=f"Training seeds of every arm.  [default: {config.MeasureConfig.num_seeds}]"
)
@click.option(
    "--rates", metavar="auto|A,B,C", help="Learning rates tried for every arm.  [default: made from the probes]"
)
@click.option("--dry-run", is_flag=True, help="Print the number of runs and steps, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print contribution.json on stdout, all else on stderr.")
@debug_option
@click.pass_context
def measure(
    ctx: click.Context, num_seeds: int | None, rates: str | None, dry_run: bool, as_json: bool, **_: Any
) -> None:
    """Measure the contribution of every layer, by training each of them and all parameters.

    The truth that `pick` predicts for a small part of its cost: (layers + 1) x seeds full runs, and the short ones
    that choose every arm's learning rate. The same command resumes a run that was interrupted.
    """
    table = {"num_seeds": num_seeds, "rates": None if rates == "auto" else rates}
    settings = _settings(ctx, measure={name: value for name, value in table.items() if value is not None})
    if dry_run:
        with only_stderr():
            from autolayer.measurement.schedule import plan_measurement

            plan = plan_measurement(settings)
        return _print(json.dumps(plan.to_dict(), indent=1), plan.render(), as_json)
    with only_stderr():
        from autolayer.measurement.measure import measure as run

        found = run(settings, progress=Progress())
    _print(json.dumps(found.to_dict(), indent=1), found.render(Path(settings.out or "")), as_json)


@cli.command(
    epilog="""\b
    Examples:
      autolayer compare runs/demo-seed-0 runs/measure-tiny
      autolayer compare runs/qwen3-1.7b published:qwen3-1.7b --out comparison
      autolayer compare predicted.csv first/contribution.json second/contribution.json third/contribution.json --json
    """
)
@click.argument("predicted")
@click.argument("measured", nargs=-1, required=True)
@click.option("--out", metavar="FOLDER", help="Also write comparison.json and the figure by depth (PNG and SVG) here.")
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json on stdout, all else on stderr.")
@debug_option
def compare(predicted: str, measured: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Judge predicted by measured contribution, against the noise ceiling and every baseline.

    PREDICTED is a run folder of `pick`, its result.json, a contribution.json (its probes, and its values for another
    task), or a CSV with the columns layer,predicted[,low,high]. MEASURED are run folders of `measure`,
    contribution.json files, CSVs with the columns layer,contribution, or published:qwen3-1.7b.
    """
    with only_stderr():
        from autolayer.comparison.compare import compare as run
        from autolayer.comparison.comparison_report import ComparisonReport

        found = run(predicted, *measured, out=out)
    _print(found.to_json(), ComparisonReport(found, folder=out), as_json)


@cli.command(epilog="\b\nExamples:\n  autolayer report runs/demo-seed-0\n  autolayer report runs/demo-seed-0 --all")
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Show every layer of a long ranking.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the one-file report here.")
@json_option
@debug_option
def report(run_folder: Path, show_all: bool, html: Path | None, as_json: bool) -> None:
    """Show the result of a run again."""
    from autolayer.reporting.html import write_html
    from autolayer.reporting.results import from_dict

    folder = RunFolder(run_folder)
    values = folder.read(RESULT)
    if values is None:
        raise RunFolderError(_why_no_result(folder))
    result = from_dict(values)
    if html is not None:
        if html.is_dir() or any(folder.is_file() for folder in html.parents):
            raise ConfigError(f"--html {html} cannot be written: give the path of a file, such as report.html.")
        try:
            html.parent.mkdir(parents=True, exist_ok=True)
            write_html(result, html)
        except OSError as error:
            raise ConfigError(f"--html {html} cannot be written ({error.strerror}): give another path.") from None
        click.echo(f"wrote {html}", err=True)
    _show(result, run_folder, as_json, show_all)


@cli.command(epilog="\b\nExamples:\n  autolayer merge runs/demo-seed-0 --out merged\n"
             "  autolayer merge layer.safetensors --model ./copy-of-the-base --out merged")  # fmt: skip
@click.argument("source", metavar="RUN_FOLDER_OR_PATCH", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="The base model, where it is not where the patch says.")
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@debug_option
def merge(source: Path, model: str | None, out: Path) -> None:
    """Write a complete Hugging Face checkpoint with the trained layer in it."""
    path = source / PATCH if source.is_dir() else source
    if (source / ADAPTER).is_dir():
        path = source / ADAPTER
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a run folder whose training has finished, or a patch file.")
    with only_stderr():
        from autolayer.models import patch

        base = patch.read_adapter_info(path)["base"] if path.is_dir() else patch.load_patch(path).base
        written = patch.merge(model or base, path, out)
    click.echo(f"wrote {written}: load it with transformers' AutoModelForCausalLM.from_pretrained({str(written)!r}).")


@cli.command(epilog="\b\nExamples:\n  autolayer doctor\n  autolayer doctor --model Qwen/Qwen3-8B --task math")
@config_options(needs_model=False)
@click.option("--json", "as_json", is_flag=True, help="Print what was found on stdout as JSON.")
@debug_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, **_: Any) -> None:
    """Say what this machine can do, and with a --model whether a run fits and what to change.

    Leaves with exit code 2 if something is missing without which nothing works.
    """
    settings = _settings(ctx) if ctx.params["model"] is not None or ctx.params["toml"] is not None else None
    with only_stderr():
        from autolayer.cli.doctor import diagnose

        found = diagnose(settings)
    _print(json.dumps(found.to_dict(), indent=1), found.render(), as_json)
    if not found.is_well:
        ctx.exit(2)


@cli.command()
@debug_option
def tasks() -> None:
    """List the built-in tasks."""
    from autolayer.tasks import FAMILIES, TASKS

    shown = {**TASKS, **{f"{prefix}NAME": family for prefix, family in FAMILIES.items()}}
    width = max(map(len, shown))
    for name, task in shown.items():
        click.echo(f"{name:{width}}  {task.description}")
    click.echo("\nYour own: --data FILE.jsonl --reward FILE.py:function, or --task FILE.py:NAME.")


def main(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and leaves with its exit code."""
    state = {"debug": False}
    # peft imports it, and it advises on kernels that nobody here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        code = cli.main(arguments, prog_name="autolayer", standalone_mode=False, obj=state)
    except Exception as error:
        code, sentence = _explain(error)
        if state["debug"] and code != 130:
            traceback.print_exc()
        if speaks() or isinstance(error, RanksError):
            click.echo(f"autolayer: {sentence}", err=True)
        if code and num_processes() > 1:
            sys.stderr.flush()
            if not speaks():  # once one has left, the launcher ends the others: first the sentence
                time.sleep(LAST_WORDS)
            os._exit(code)  # an ordinary end would wait for the other processes
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the sentence for whatever ended a command."""
    if isinstance(error, click.Abort):  # Ctrl-C
        return 130, "interrupted: the same command resumes where it stopped"
    if isinstance(error, AutolayerError | click.ClickException):
        return 2, f"error: {error.format_message() if isinstance(error, click.ClickException) else error}"
    if isinstance(error, OSError) and error.errno in NO_DISK:
        cure = "Make room, or give another --out" if error.errno in FULL else "Give an --out that you may write to"
        return 2, f"error: {error.filename or 'a file'}: {error.strerror}. {cure}."
    if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported here
        return 2, "error: the device ran out of memory: give a smaller --prompts-per-step or --max-new-tokens."
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return 1, f"this is a bug of autolayer ({what}): run the same command with --debug to see where."


def _settings(ctx: click.Context, **tables: dict[str, Any]) -> config.Config:
    """Options given on the command line before --config before defaults. Names are checked, the folder is named.

    Args:
        ctx: Of the command.
        tables: Options given on the command line that belong into a table of the --config file.
    """
    values: dict[str, Any] = {}
    options = {option.name: option for option in ctx.command.params if isinstance(option, ConfigOption)}
    if ctx.params["toml"] is not None:
        for name, value in config.read_toml(ctx.params["toml"]).items():
            # The option's type checks the file's value as well, and names the option in its error.
            values[name] = options[name].type_cast_value(ctx, value) if name in options else value
    given = [name for name in options if name and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    values |= {name: ctx.params[name] for name in given}
    values |= {name: {**values.get(name, {}), **table} for name, table in tables.items()}
    if "model" not in values:
        raise ConfigError("--model is missing: give 'tiny', a local folder, or a Hugging Face name.")
    settings = config.from_dict(values)
    # Imported here: both refuse an unknown name without the seconds that importing torch takes.
    from autolayer import tasks
    from autolayer.models.loading import EMBEDDED, check_name

    check_name(settings.model)
    packaged = EMBEDDED.get(settings.model)
    tasks.check_name(settings, packaged.forms if packaged else None)
    return dataclasses.replace(settings, out=str(open_run(settings, verb=str(ctx.command.name)).path))


def _show(result: PickResult, folder: Path, as_json: bool, show_all: bool = False) -> None:
    from autolayer.reporting.terminal import Report

    _print(result.to_json(), Report(result, folder=folder, show_all=show_all), as_json)


def _print(text: str, renderable: RenderableType, as_json: bool) -> None:
    if not speaks():
        return
    if as_json:
        return click.echo(text)
    import rich

    rich.get_console().print(renderable, crop=False)  # a command in it is to be copied whole


def _why_no_result(folder: RunFolder) -> str:
    from autolayer.reporting.contribution import CONTRIBUTION_FILE

    if (folder / CONTRIBUTION_FILE).is_file():
        return f"{folder.path} is a run of `measure`: repeat its command to see it, or `compare` a prediction with it."
    if (calibration := folder.read(CALIBRATION)) is None:
        return f"{folder.path} has no {RESULT}: give the folder of a run, or repeat its command to finish it."
    if calibration.get("status") == "no_signal":
        return f"{folder.path} found no training signal: {calibration.get('message') or 'see ' + CALIBRATION}"
    return f"{folder.path} is not finished: repeat the command that made it, and it goes on."
