"""The report of a result as one HTML file (`report.html.jinja`) that needs no network and no script.

Unlike the terminal, the page does not list the files of the run and the next command, which matter only right after it.
"""

import importlib
from pathlib import Path
from typing import Any

import jinja2

from autolayer.core.depth_prior import BASELINES
from autolayer.core.formatting import format_count, format_seconds
from autolayer.reporting.figures import draw_figures
from autolayer.reporting.race_table import arm_rows
from autolayer.reporting.ranking import marks_by_layer, shown_rows, value_columns
from autolayer.reporting.results import PickResult
from autolayer.reporting.run_files import first_and_last_completions, repeat_command, training_rewards
from autolayer.reporting.sentences import cost_line, detail_lines, headline_parts, layers_as_good, legend


def html_page(result: PickResult, folder: Path | None = None) -> str:
    """Returns the report as the text of one file.

    Args:
        result: The result to show.
        folder: Its run folder, for the final run's curve and the command that repeats the run.
    """
    return _render("report.html.jinja", result, folder)


def html_fragment(result: PickResult) -> str:
    """Returns the verdict, its figure and the ranking as HTML that stands alone in a notebook's cell."""
    return f"<div class=autolayer>{_render('fragment.html.jinja', result, None)}</div>"


def write_figures(result: PickResult, run: Path | None, folder: Path) -> list[Path]:
    """Writes the report's figures as SVG, and as PNG where resvg-py is installed. Returns their paths."""
    try:
        resvg: Any = importlib.import_module("resvg_py")
    except ImportError:
        resvg = None
    folder.mkdir(parents=True, exist_ok=True)
    style = f"<style>{_template('figures.css.jinja').render(dark=False)}</style>"
    written: list[Path] = []
    for name, figure in _figures(result, run).items():
        svg = figure.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).replace(
            "<title>", f"{style}<title>", 1
        )
        written.append(folder / f"{name}.svg")
        written[-1].write_text(svg, encoding="utf-8")
        if resvg is not None:
            written.append(folder / f"{name}.png")
            written[-1].write_bytes(resvg.svg_to_bytes(svg_string=svg, background="#ffffff", zoom=3))
    return written


def _figures(result: PickResult, folder: Path | None) -> dict[str, str]:
    return draw_figures(result, () if folder is None else training_rewards(folder, result))


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True}
    return jinja2.Environment(loader=loader, **options).get_template(name)


def _render(template: str, result: PickResult, folder: Path | None) -> str:
    rows, arms = shown_rows(result, show_all=True), arm_rows(result)
    return _template(template).render(
        result=result,
        headline=headline_parts(result),
        lines=detail_lines(result),
        cost_line=cost_line(result),
        rows=rows,
        marks=marks_by_layer(result),
        legend=legend(result),
        as_good=layers_as_good(result),
        columns=value_columns(rows) if rows else {},
        arms=arms,
        rungs=sorted({rung.steps for arm in arms for rung in arm.rungs}),
        probes={name: scores for name, scores in (result.probes or {}).items() if name not in BASELINES},
        command=None if folder is None else repeat_command(folder),
        completions=[] if folder is None else first_and_last_completions(folder, result),
        figures=_figures(result, folder),
        dark=True,
        format_count=format_count,
        format_seconds=format_seconds,
    )
