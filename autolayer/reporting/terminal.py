"""The report of a result in the terminal; `html.py` writes the same as a file. Both need only result.json."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolayer.core.formatting import format_count, format_seconds
from autolayer.core.run_folder import ADAPTER, PATCH, REPORT, RESULT
from autolayer.reporting.ranking import ESTIMATES, marks_by_layer, shown_rows, value_columns
from autolayer.reporting.results import PickResult, RankingRow
from autolayer.reporting.sentences import cost_line, detail_lines, headline, legend

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

FILES = {
    PATCH: "the trained weights",
    ADAPTER: "the trained adapter, for PEFT and vLLM",
    REPORT: "this report, with figures",
    RESULT: "every number",
}


@dataclass(frozen=True)
class Report:
    """Renders a result for the terminal: `rich.print(Report(result))` fits it to the terminal's width."""

    result: PickResult
    folder: Path | None = None
    """The run folder, to name the files in it and the next command."""
    show_all: bool = False
    """If False, the first dozen candidates, the tied layers and the baselines are shown."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        result = self.result
        yield Text(headline(result), style="bold")
        yield Text(f"{result.model}, {result.task}, {result.algorithm}", style="dim")
        if rows := shown_rows(result, self.show_all):
            yield ""
            table, intervals = _ranking_table(result, rows, options.max_width, "#" if options.ascii_only else "█")
            yield table
            yield Text(legend(result, intervals), style="dim")
        if result.sets:
            yield ""
            yield _sets_table(result)
        if rows and (hidden := len({row.layer for row in result.ranking or ()} - {row.layer for row in rows})):
            command = shlex.join(["autolayer", "report", str(self.folder or "RUN_FOLDER"), "--all"])
            yield Text(f"{hidden} more layers are hidden; `{command}` shows them.")
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


def _ranking_table(
    result: PickResult, rows: Sequence[RankingRow], width: int, block: str
) -> tuple[Table, Sequence[str]]:
    """Returns the widest form that fits, and its columns with intervals.

    Bars are left out first, then the intervals of short runs, then all.
    """
    from rich.console import Console
    from rich.measure import Measurement

    unbounded = Console(width=999)
    for intervals, bar in ((ESTIMATES, 10), (ESTIMATES, 5), (ESTIMATES, 0), (("expected",), 0), ((), 0)):
        columns = value_columns(rows, intervals)
        table = _table("layer", "", *columns, *(["contribution" if bar > 5 else "contr."] if bar else []))
        table.columns[0].justify = "right"
        table.columns[1].no_wrap = False
        marks = marks_by_layer(result)
        known = [(row.expected, row.measured, row.predicted) for row in rows]
        values = [next((value for value in each if value is not None), 0.0) for each in known]
        largest = max(values) if max(values) > 0 else 1.0
        for row, value, *cells in zip(rows, values, *columns.values(), strict=True):
            best = row.layer in (result.best_layers or ())
            bars = [block * round(bar * max(value, 0.0) / largest)] if bar else []
            named = f"{'>' if best else ' '}{row.layer}", ", ".join(marks.get(row.layer, ()))
            table.add_row(*named, *cells, *bars, style="bold green" if best else None)
        if Measurement.get(unbounded, unbounded.options, table).maximum <= width:
            break
    return table, intervals


def _sets_table(result: PickResult) -> Table:
    sets = result.sets or ()
    columns = value_columns(sets)
    table = _table("layers", *columns)
    for row, *cells in zip(sets, *columns.values(), strict=True):
        best = row.layers == result.best_layers
        name = f"{'>' if best else ' '}{', '.join(map(str, row.layers))}"
        table.add_row(name, *cells, style="bold green" if best else None)
    return table


def _cost_table(result: PickResult) -> Table:
    table = _table("cost", "tokens generated", "layer-tokens, all", "time")
    table.columns[0].justify = "left"
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
        table.add_column(heading, justify="right" if heading in ("steps", "P(best)", "cost") else "left", no_wrap=True)
    return table


def _next_steps(result: PickResult, folder: Path | None) -> list[str]:
    if folder is None:
        return []
    lines = [f"  {folder / name}  {what}" for name, what in FILES.items() if (folder / name).exists()]
    lines = ["", "Files:", *lines] if lines else []
    if result.status == "prior":
        return [
            *lines,
            "Next: the same command with --budget 0.1 measures before it trains; `autolayer train --layers "
            f"{(result.best_layers or (0,))[0]}` with the same --model and task trains this layer.",
        ]
    if result.status == "incomplete":
        return [
            *lines,
            "Next: run the same command again (without --until, with more --hours) to continue from here.",
        ]
    if result.gain is not None and result.gain.high < 0:
        return [
            *lines,
            "The trained model is WORSE than the base: do not use it. Its learning rate "
            f"({result.learning_rate or 0:.2g}) may have been too high: give a smaller --learning-rate, or more "
            "--prompts-per-step, so that the rate is measured on more prompts.",
        ]
    if result.trained_layers:
        return [*lines, "Next: " + shlex.join(["autolayer", "merge", str(folder), "--out", str(folder / "merged")])]
    return lines
