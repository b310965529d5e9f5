"""The commands that put measurements side by side: `compare` and `atlas`."""

from __future__ import annotations

from pathlib import Path

import click

from autolayer.cli.group import JSON
from autolayer.cli.output import only_stderr, print_found
from autolayer.core.errors import ConfigError
from autolayer.core.shown_text import visible


@click.command(
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


@click.command(
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
