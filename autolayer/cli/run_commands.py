"""The commands that train: `pick`, `train` and `measure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from autolayer.cli.group import DRY_RUN, JSON, print_result
from autolayer.cli.options import ConfigCommand, read_config
from autolayer.cli.output import only_stderr, print_found
from autolayer.core.errors import ConfigError
from autolayer.reporting.progress import TerminalProgress

if TYPE_CHECKING:
    from autolayer.core.config import Config
    from autolayer.pipeline.pick import Until
    from autolayer.pipeline.run_plan import RunPlan


@click.command(
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
    print_result(result, Path(config.out or ""), as_json)


@click.command(
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
    print_result(result, Path(config.out or ""), as_json)


@click.command(
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


def _plan(config: Config, verb: Literal["pick", "train"]) -> RunPlan:
    from autolayer.pipeline.defaults import check_plan

    check_plan(config)  # before what takes seconds to import
    with only_stderr(), TerminalProgress().stage("plan", None):
        from autolayer.pipeline.dry_run import plan_run

        return plan_run(config, verb)
