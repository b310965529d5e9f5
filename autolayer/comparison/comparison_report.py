"""The terminal report of a comparison, made from the records alone; its sentences come from verdicts.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolayer.comparison.comparison import COMPARISON_FILE, FIGURE_FILES, Comparison, JudgedRanking, Judgement
from autolayer.core.statistics import Interval

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _picks(row: JudgedRanking) -> str:
    return (
        ("any" if row.name == "random" else "-")
        if not row.picks
        else ",".join(map(str, row.picks[:3])) + (".." if len(row.picks) > 3 else "")
    )


COLUMNS: tuple[tuple[str, str, Callable[[JudgedRanking], str]], ...] = (
    ("spearman", "Spear-\nman", lambda row: _number(row.spearman)),
    ("share_of_ceiling", "of\nceiling", lambda row: _share(row.share_of_ceiling)),
    ("kendall", "Ken-\ndall", lambda row: _number(row.kendall)),
    ("spearman_without_depth", "beyond\ndepth", lambda row: _number(row.spearman_without_depth)),
    ("regret_top1", "regret\ntop 1", lambda row: _number(row.regret_top1)),
    ("regret_top3", "regret\ntop 3", lambda row: _number(row.regret_top3)),
    ("coverage", "in\n80%", lambda row: _share(row.coverage)),
    ("winkler", "Wink-\nler", lambda row: _number(row.winkler)),
    ("picks", "\npick", _picks),
    ("spearman_difference", "prediction's Spearman\nis higher by", lambda row: _interval(row.spearman_difference)),
    ("regret_difference", "its regret\nis higher by", lambda row: _interval(row.regret_difference)),
)
"""Field of a row, heading, text."""
OPTIONAL = ("share_of_ceiling", "coverage", "winkler", "picks", "spearman_difference", "regret_difference")
"""Columns shown only where some row has a value; the others show a dash."""
DROPPED_WHEN_NARROW = (
    "regret_difference",
    "kendall",
    "winkler",
    "share_of_ceiling",
    "spearman_difference",
    "coverage",
    "picks",
    "regret_top3",
)
"""Columns left out in a narrow terminal, in this order; --json has every number."""


@dataclass(frozen=True)
class ComparisonReport:
    """The terminal report: `rich.print(ComparisonReport(found))` fits it to the terminal."""

    found: Comparison
    folder: str | Path | None = None
    """Folder that the comparison was written to, so that the report can name the files."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        for place, judged in enumerate(self.found.comparisons):
            if place:
                yield ""
            yield Text(f"predicted: {_named(judged.predicted, judged.predicted_for)}", style="dim")
            yield Text(f"measured: {_named(judged.measured, judged.measured_on)}; {_facts(judged)}", style="dim")
            yield _table(judged.rows, options.max_width)
            yield Text(judged.verdict, style="bold")
            yield from (Text(f"Note: {note}.", style="yellow") for note in judged.notes)
        if (mean := self.found.mean) is not None:
            yield ""
            yield Text(f"mean of {mean.num_comparisons} files", style="dim")
            yield _table(mean.rows, options.max_width)
            yield Text(mean.verdict, style="bold")
            yield from (Text(f"Note: {note}.", style="yellow") for note in mean.notes)
        yield ""
        yield Text(_legend(self.found), style="dim")
        if self.folder is not None:
            yield Text(
                f"Files: {', '.join(str(Path(self.folder) / name) for name in (COMPARISON_FILE, *FIGURE_FILES))}"
            )


def _table(rows: Sequence[JudgedRanking], width: int) -> Table:
    """Returns a table with as many columns as fit the width."""
    from rich.console import Console
    from rich.measure import Measurement

    endless = Console(width=999)
    known = {name for name in OPTIONAL if any(getattr(row, name) not in (None, ()) for row in rows)}
    shown = [name for name, _, _ in COLUMNS if name not in OPTIONAL or name in known]
    for unwanted in ("", *DROPPED_WHEN_NARROW):
        shown = [name for name in shown if name != unwanted]
        table = _form(rows, shown)
        if Measurement.get(endless, endless.options, table).maximum <= width:
            break
    return table


def _form(rows: Sequence[JudgedRanking], shown: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("", no_wrap=True)
    columns = [(heading, text) for name, heading, text in COLUMNS if name in shown]
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = {"prediction": "bold green", "baseline": None, "probe": "dim"}[row.kind]
        table.add_row(row.name, *(text(row) for _, text in columns), style=style)
    return table


def _named(source: str, setting: str) -> str:
    return source if source == setting else f"{source} ({setting})"


def _facts(judged: Judgement) -> str:
    seeds = "one value a layer" if judged.in_sample else f"{judged.num_seeds} seeds"
    ceiling = "" if judged.ceiling is None else f", noise ceiling {judged.ceiling:.2f}"
    return f"{len(judged.points)} of {judged.num_layers} layers, {seeds}{ceiling}"


def _legend(found: Comparison) -> str:
    intervals = any(row.coverage is not None for one in found.comparisons for row in one.rows)
    parts = [
        "beyond depth: Spearman without a quadratic trend in depth",
        "regret: contribution lost by training the top layer, or the best of the top 3",
        "in 80%, Winkler: how often the 80% interval holds the measured value, and its score (lower is better)"
        if intervals
        else "",
        "random: expected values",
    ]
    return f"{'; '.join(filter(None, parts))}."
