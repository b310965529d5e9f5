"""The commands of the command line. Each reads its options, makes one library call and prints the result.

Cheap checks run before torch is imported, so that a mistyped name is refused at once. The library is imported inside
the commands for the same reason.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import click

from autolayer import __version__
from autolayer.cli.options import ConfigCommand, read_config, read_values
from autolayer.cli.output import only_stderr, print_found
from autolayer.cli.progress import TerminalProgress
from autolayer.core.errors import ConfigError, ModelError, RunFolderError, UnknownNameError
from autolayer.core.run_folder import ADAPTER, CALIBRATION, PATCH, RESULT, RunFolder
from autolayer.core.shown_text import visible
from autolayer.reporting.export import TRAINERS

if TYPE_CHECKING:
    from autolayer.core.config import Config
    from autolayer.pipeline.pick import Until
    from autolayer.pipeline.run_plan import RunPlan
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


@cli.command(
    cls=ConfigCommand,
    epilog="""Where no default is shown, the model's preset or the task decides; --dry-run shows the values.

    \b
    Examples:
      autolayer pick --model tiny --task math:arith
      autolayer pick --model Qwen/Qwen3-8B --task math --dry-run
      autolayer pick --model ./my-model --data prompts.jsonl --reward reward.py:score
      autolayer pick --model tiny --task math:arith --until probe --json
      autolayer pick --model Qwen/Qwen3-8B --budget 0
    """,
)
@click.option("--until", type=click.Choice(["calibrate", "probe", "search"]), help="Stop after this stage.")
@DRY_RUN
@JSON
@click.pass_context
def pick(ctx: click.Context, until: Until | None, dry_run: bool, as_json: bool, **_: Any) -> None:
    """Find the layer that RL improves most, and train it.

    Runs calibrate, probe, search and train. The same command resumes a run that was interrupted.
    """
    config = read_config(ctx)
    if dry_run:
        return print_found(_plan(config, "pick"), as_json)
    with only_stderr():
        if config.budget == 0:  # at once: without the libraries that train
            from autolayer.pipeline.depth_answer import answer_from_depth

            result = answer_from_depth(config, until)
        else:
            from autolayer.pipeline.pick import pick

            result = pick(config, until=until, progress=TerminalProgress())
    _print_result(result, Path(config.out or ""), as_json)


@cli.command(
    cls=ConfigCommand,
    leave_out=("budget", "regret", "storage", "top_k"),  # only a search reads them
    texts={
        "layers": "Layers to train, such as 16, 10-14 or 8,16.",
        "learning_rate": "Learning rate of the trained layers, or auto. Default: auto, which takes it from the probes.",
        "hours": "Deadline for the whole run in hours.",
    },
    epilog="""\b
    Examples:
      autolayer train --model tiny --task math:arith --layers 2
      autolayer train --model Qwen/Qwen3-8B --task math --layers 16-18 --learning-rate 3e-6
      autolayer train --model Qwen/Qwen3-8B --task math --layers 16 --dry-run
    """,
)
@DRY_RUN
@JSON
@click.pass_context
def train(ctx: click.Context, dry_run: bool, as_json: bool, **_: Any) -> None:
    """Train the layers you name, without searching."""
    config = read_config(ctx)
    if config.layers is None:
        raise ConfigError("--layers is missing: name the layers to train (16, 10-14 or 8,16), or let `pick` find one.")
    if dry_run:
        return print_found(_plan(config, "train"), as_json)
    with only_stderr():
        from autolayer.pipeline.pick import train_layer

        result = train_layer(config, progress=TerminalProgress())
    _print_result(result, Path(config.out or ""), as_json)


@cli.command(
    cls=ConfigCommand,
    leave_out=("regret", "storage", "hours", "top_k", "adapter", "history"),  # `measure` does not read them
    texts={
        "layers": "Layers to measure, such as 16, 10-14 or 8,16. Default: all.",
        "learning_rate": "Learning rate of every arm, or auto. Default: auto, which tries --rates.",
        "budget": "Cost of the probes, as a share of one full run.  [default: 0.25]",
    },
    epilog="""\b
    Examples:
      autolayer measure --model tiny --task math:arith
      autolayer measure --model tiny --task math:arith --layers 0,3-5 --num-seeds 2 --rates 1e-3,3e-3
      autolayer measure --model Qwen/Qwen3-8B --task math --dry-run
    """,
)
@click.option("--num-seeds", type=click.INT, metavar="N", help="Training seeds of every arm.  [default: 3]")
@click.option("--rates", metavar="auto|A,B,C", help="Learning rates of every arm.  [default: made from the probes]")
@DRY_RUN
@JSON
@click.pass_context
def measure(
    ctx: click.Context, num_seeds: int | None, rates: str | None, dry_run: bool, as_json: bool, **_: Any
) -> None:
    """Measure every layer's contribution, by training each one.

    This is the truth that `pick` predicts for a small part of its cost: (layers + 1) x seeds full runs, and the short
    ones that choose every arm's learning rate. The same command resumes a run that was interrupted.
    """
    given = {"num_seeds": num_seeds, "rates": rates}
    config = read_config(ctx, measure={name: value for name, value in given.items() if value is not None})
    if dry_run:
        with only_stderr():
            from autolayer.measurement.schedule import plan_measurement

            plan = plan_measurement(config)
        return print_found(plan, as_json)
    with only_stderr():
        from autolayer.measurement.measure import measure as run
        from autolayer.reporting.contribution_table import contribution_table

        found = run(config, progress=TerminalProgress())
    print_found(found, as_json, contribution_table(found, Path(config.out or "")))


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
@JSON
def compare(predicted: str, measured: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Compare predicted with measured contribution.

    The report also shows the noise ceiling and every baseline. PREDICTED is a run folder of `pick`, its
    result.json, a contribution.json (its probes, and its values for another task), or a CSV with the columns
    layer,predicted[,low,high]. MEASURED are run folders of `measure`, contribution.json files, CSVs with the columns
    layer,contribution, or a curve that ships with autolayer: published:qwen3-1.7b, qwen3-1.7b-8k, qwen3-1.7b-12-sets,
    qwen3-4b, qwen3-8b, qwen2.5-math-1.5b, qwen2.5-1.5b, qwen2.5-3b, r1-distill-qwen-7b, qwen3-8b-lora, olmo-3-7b-lora,
    llama-3.1-8b-lora, smollm2-sums, smollm2-other, gemma-3-270m-sums, third-24-layers.
    """
    with only_stderr():
        from autolayer.comparison.compare import compare as run
        from autolayer.comparison.comparison_report import ComparisonReport

        found = run(predicted, *measured, out=out)
    print_found(found, as_json, ComparisonReport(found, folder=out))


@cli.command(
    epilog="""\b
    Examples:
      autolayer atlas runs
      autolayer atlas published:all --figure atlas.png
      autolayer atlas runs/one/contribution.json runs/two published:qwen3-1.7b --out atlas.md
    """
)
@click.argument("sources", metavar="DIR|FILE...", nargs=-1, required=True)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Also write the table here: .csv or .md.")
@click.option("--figure", metavar="FILE", type=click.Path(path_type=Path),
              help="Also draw all curves by relative depth here: .png or .svg.")  # fmt: skip
@JSON
def atlas(sources: tuple[str, ...], out: Path | None, figure: Path | None, as_json: bool) -> None:
    """Show many measured contributions as one table.

    A DIR is searched for contribution.json files, which `measure` writes; where it has none, its .json files must hold
    such a record. published:NAME is a curve that ships with autolayer, and published:all is every one.
    """
    for option, path, endings in (("--out", out, (".csv", ".md")), ("--figure", figure, (".png", ".svg"))):
        if path is not None and (path.suffix not in endings or path.is_dir()):
            raise ConfigError(f"{option} {path} names no file that ends in {' or '.join(endings)}: give one.")
    with only_stderr():
        from autolayer.comparison.atlas import make_atlas, write_table
        from autolayer.comparison.atlas_report import AtlasReport, write_figure
        from autolayer.comparison.figure import check_matplotlib

        if figure is not None:
            check_matplotlib("--figure")
        found = make_atlas(sources)
        if out is not None:
            write_table(found, out)
        if figure is not None:
            figure.parent.mkdir(parents=True, exist_ok=True)
            write_figure(found, figure)
    for path in filter(None, (out, figure)):
        click.echo(visible(f"wrote {path}"), err=True)
    print_found(found, as_json, AtlasReport(found))


@cli.command(epilog="\b\nExamples:\n  autolayer report runs/demo-seed-0\n  autolayer report runs/demo-seed-0 --all\n"
             "  autolayer report runs/demo-seed-0 --regret 0.1 --top-k 3")  # fmt: skip
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Show every layer of a long ranking.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write the one-file report here.")
@click.option("--figures", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Also write the report's figures here: SVG, and with autolayer[figures] PNG.")  # fmt: skip
@click.option("--regret", metavar="NUMBER", type=click.FLOAT,
              help="Decide again from what was measured: contribution that you are ready to lose.")  # fmt: skip
@click.option("--top-k", metavar="N", type=click.INT, help="Decide again: layers to train together.")
@JSON
def report(
    run_folder: Path,
    show_all: bool,
    html: Path | None,
    figures: Path | None,
    regret: float | None,
    top_k: int | None,
    as_json: bool,
) -> None:
    """Show the result of a run again, or decide again from what it measured. The run stays as it is."""
    from autolayer.reporting.html import html_page, write_figures
    from autolayer.reporting.results import PickResult

    _check_result(run_folder)
    result = PickResult.read(run_folder)
    decides = (regret, top_k) != (None, None)
    if decides:
        with only_stderr():
            from autolayer.pipeline.decide_again import decide_run_again

            result = decide_run_again(run_folder, regret=regret, top_k=top_k)
    folder = None if decides else run_folder  # its final run belongs to the first decision
    written: list[Path] = []
    wanted = f"--html {html}", "file"
    try:
        if html is not None:
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(html_page(result, folder), encoding="utf-8")
            written.append(html)
        wanted = f"--figures {figures}", "folder"
        if figures is not None:
            written += write_figures(result, folder, figures)
    except OSError as error:
        raise ConfigError(
            f"{wanted[0]} cannot be written ({error.strerror}): give the path of a {wanted[1]}."
        ) from None
    for path in written:
        click.echo(visible(f"wrote {path}"), err=True)
    _print_result(result, folder, as_json, show_all)


@cli.command(epilog="\b\nExamples:\n  autolayer export runs/demo-seed-0 --to trl\n"
             "  autolayer export --model Qwen/Qwen3-8B --layers 12 --to axolotl")  # fmt: skip
@click.argument("run_folder", required=False, type=click.Path(path_type=Path))
@click.option("--to", "trainer", type=click.Choice(TRAINERS), help="Trainer to write for.")
@click.option("--layers", metavar="LAYERS", help="Layers to hand over, such as 16, 10-14 or 8,16. Default: the run's.")
@click.option("--model", metavar="NAME", help="Base model. Default: the run's.")
def export(run_folder: Path | None, trainer: str | None, layers: str | None, model: str | None) -> None:
    """Print what makes another trainer train the chosen layers.

    The text is meant to be pasted. Its comments say what it does not hand over.
    """
    if trainer is None:
        raise ConfigError(f"--to is missing: name the trainer to write for ({', '.join(TRAINERS)}).")
    if run_folder is not None:
        _check_result(run_folder)
    with only_stderr():
        from autolayer.pipeline.handover import hand_over

        text = hand_over(trainer, run_folder, layers=layers, model=model)
    click.echo(visible(text), nl=False)


@cli.command(epilog="\b\nExamples:\n  autolayer merge runs/demo-seed-0 --out merged\n"
             "  autolayer merge layer.safetensors --model ./copy-of-the-base --out merged")  # fmt: skip
@click.argument("source", metavar="RUN_FOLDER_OR_PATCH", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME", help="Base model, if it is not at the place that the patch names.")
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Folder to write.")
def merge(source: Path, model: str | None, out: Path) -> None:
    """Write a complete Hugging Face checkpoint with the trained layer."""
    path = source / PATCH if source.is_dir() else source
    if (source / ADAPTER).is_dir():
        path = source / ADAPTER
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a run folder whose training has finished, or a patch file.")
    with only_stderr():
        from autolayer.models.merge import merge as merge_into_base

        try:
            written = merge_into_base(model, path, out)
        except (ModelError, UnknownNameError) as error:
            if model is not None:
                raise
            raise ModelError(
                f"{error} This base model is named in {path}, and a relative path counts from where it was trained: "
                "if it is elsewhere, give --model."
            ) from error
    how = f"AutoModelForCausalLM.from_pretrained({str(written)!r})"
    click.echo(
        visible(f"wrote {written}: load it with transformers' {how}, or serve it: vllm serve {quote(str(written))}")
    )


@cli.command(epilog="\b\nExamples:\n  autolayer push runs/demo-seed-0 me/demo-layer --private\n"
             "  autolayer push runs/demo-seed-0 me/demo --merged")  # fmt: skip
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.argument("repo_id")
@click.option("--merged", is_flag=True, help="Upload the whole model, merged, instead of the trained layer.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
def push(run_folder: Path, repo_id: str, merged: bool, private: bool) -> None:
    """Upload the trained layer to the Hugging Face Hub, with a model card."""
    _check_result(run_folder)
    with only_stderr():
        from autolayer.pipeline.hub_push import push as upload

        address = upload(run_folder, repo_id, private=private, merged=merged)
    click.echo(visible(f"wrote {address}"))


@cli.command()
def tasks() -> None:
    """List the built-in tasks."""
    from autolayer.tasks import TASKS

    width = max(map(len, TASKS))
    for name, task in TASKS.items():
        click.echo(f"{name:{width}}  {task.description}")
    click.echo("\nYour own task: --data FILE --reward FILE.py:function, or --task FILE.py:NAME.")


@cli.command(
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


def _plan(config: Config, verb: Literal["pick", "train"]) -> RunPlan:
    with only_stderr(), TerminalProgress().stage("plan", None):
        from autolayer.pipeline.dry_run import plan_run

        return plan_run(config, verb)


def _print_result(result: PickResult, folder: Path | None, as_json: bool, show_all: bool = False) -> None:
    from autolayer.reporting.terminal import Report

    print_found(result, as_json, Report(result, folder=folder, show_all=show_all))


def _check_result(run_folder: Path) -> None:
    if not (folder := RunFolder(run_folder)).has(RESULT):
        raise RunFolderError(_why_no_result(folder))


def _why_no_result(folder: RunFolder) -> str:
    from autolayer.reporting.contribution import Contribution

    if (folder / Contribution.FILE).is_file():
        return f"{folder.path} is a run of `measure`: repeat its command to see it, or `compare` a prediction with it."
    if (calibration := folder.read(CALIBRATION)) is None:
        return f"{folder.path} has no {RESULT}: give the folder of a run, or repeat its command to finish it."
    if calibration.get("status") == "no_signal":
        return f"{folder.path} found no training signal: {calibration.get('message') or 'see ' + CALIBRATION}"
    return f"{folder.path} is not finished: repeat the command that made it to resume it."
