"""The report of a result in the terminal; `html.py` writes the same as a file.

Both are made from result.json alone, so `autolayer report` can show an old run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolayer.core.formatting import format_count, format_seconds
from autolayer.core.run_folder import ADAPTER, PATCH, REPORT, RESULT
from autolayer.reporting.ranking import estimate_cell, marks_by_layer, percent_cell, shown_rows, steps_cell
from autolayer.reporting.results import PickResult, RankingRow
from autolayer.reporting.sentences import cost_line, detail_lines, headline, legend

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

FILES = {
    PATCH: "the trained weights",
    ADAPTER: "the trained adapter, for PEFT and vLLM",
    REPORT: "this report, with a figure",
    RESULT: "every number",
}
"""Files of a run folder that the report names, and what is in them."""


@dataclass(frozen=True)
class Report:
    """Renders a result for the terminal: `rich.print(Report(result))` fits it to the terminal's width."""

    result: PickResult
    folder: Path | None = None
    """The run folder, to name the files in it and the next command."""
    show_all: bool = False
    """True to show all candidates; by default the first dozen, the tied layers and the baselines are shown."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields the answer first, then the ranking, the details, the costs and the files."""
        from rich.text import Text

        result = self.result
        yield Text(headline(result), style="bold")
        yield Text(f"{result.model}, {result.task}, {result.algorithm}", style="dim")
        shown = shown_rows(result, self.show_all)
        if shown.rows:
            yield ""
            yield _ranking_table(result, shown.rows, options.max_width, "#" if options.ascii_only else "█")
            yield Text(legend(result), style="dim")
        if result.sets:
            yield ""
            yield _sets_table(result)
        if shown.num_hidden:
            command = f"autolayer report {self.folder or 'RUN_FOLDER'} --all"
            yield Text(f"{shown.num_hidden} more layers are hidden; `{command}` shows them.")
        if details := detail_lines(result):
            yield ""
            yield from map(Text, details)
        if result.cost:
            yield ""
            yield _cost_table(result)
        if (cost := cost_line(result)) is not None:
            yield Text(cost)
        yield from (Text(f"Note: {note}", style="yellow") for note in result.notes)
        for line in _next_steps(result, self.folder):
            is_command = line.startswith("Next: autolayer")  # not broken over two lines, so that it can be copied
            yield Text(line, no_wrap=is_command, overflow="ignore" if is_command else None)


def _ranking_table(result: PickResult, rows: Sequence[RankingRow], width: int, block: str) -> Table:
    """Returns the widest form that fits: bars are left out first, then the intervals, then the steps."""
    from rich.console import Console
    from rich.measure import Measurement

    unbounded = Console(width=999)
    for intervals, bar in ((True, 10), (True, 5), (True, 0), (False, 0)):
        table = _ranking_form(result, rows, intervals, True, block * bar)
        if Measurement.get(unbounded, unbounded.options, table).maximum <= width:
            return table
    return _ranking_form(result, rows, False, False, "")


def _ranking_form(result: PickResult, rows: Sequence[RankingRow], intervals: bool, steps: bool, bar: str) -> Table:
    table = _table("layer", "", *(("predicted", "measured", "steps") if steps else ("pred.", "meas.")), "P(best)")
    table.columns[0].justify = "right"
    table.columns[1].no_wrap = False
    if bar:
        table.add_column("contribution" if len(bar) > 5 else "contr.", no_wrap=True)
    marks = marks_by_layer(result)
    values = [row.predicted if row.measured is None else row.measured for row in rows]
    largest = max([value for value in values if value is not None and value > 0], default=1.0)
    for row, value in zip(rows, values, strict=True):
        best = row.layer in (result.best_layers or ())
        cells = [
            f"{'>' if best else ' '}{row.layer}",
            ", ".join(marks.get(row.layer, ())),
            estimate_cell(row.predicted, row.predicted_low, row.predicted_high, intervals),
            estimate_cell(row.measured, row.measured_low, row.measured_high, intervals),
            *([steps_cell(row.measured_steps)] if steps else []),
            percent_cell(row.probability_best),
        ]
        if bar:
            cells.append(bar[: round(len(bar) * max(value or 0.0, 0.0) / largest)])
        table.add_row(*cells, style="bold green" if best else None)
    return table


def _sets_table(result: PickResult) -> Table:
    """Returns the sets of layers that --top-k compared."""
    table = _table("layers", "predicted", "measured", "steps", "P(best)")
    for row in result.sets or ():
        best = tuple(row.layers) == tuple(result.best_layers or ())
        table.add_row(
            f"{'>' if best else ' '}{', '.join(map(str, row.layers))}",
            estimate_cell(row.predicted, None, None),
            estimate_cell(row.measured, row.measured_low, row.measured_high),
            steps_cell(row.measured_steps),
            percent_cell(row.probability_best),
            style="bold green" if best else None,
        )
    return table


def _cost_table(result: PickResult) -> Table:
    table = _table("cost", "tokens generated", "layer-tokens, all", "time")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cost in result.cost.items():
        counts = format_count(cost.generated_tokens), format_count(cost.layer_tokens)
        table.add_row(name, *counts, format_seconds(cost.seconds))
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("steps", "P(best)") else "left", no_wrap=True)
    return table


def _next_steps(result: PickResult, folder: Path | None) -> list[str]:
    """Returns the files that are there, and what to do next."""
    if folder is None:
        return []
    lines = [f"  {folder / name}  {what}" for name, what in FILES.items() if (folder / name).exists()]
    lines = ["", "Files:", *lines] if lines else []
    if result.status == "incomplete":
        return [*lines, "Next: run the same command again (without --until) to continue from here."]
    if result.gain is not None and result.gain.high < 0:
        return [
            *lines,
            "The trained model is WORSE than the base: do not use it. Its learning rate "
            f"({result.learning_rate or 0:.2g}) may have been too high: give a smaller --learning-rate, or more "
            "--prompts-per-step, so that the rate is measured on more prompts.",
        ]
    if result.trained_layers:
        return [*lines, f"Next: autolayer merge {folder} --out {folder / 'merged'}"]
    return lines
