"""The terminal report of a comparison, made from the records alone; its sentences come from verdicts.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolayer.comparison.comparison import Comparison, JudgedRanking, Judgement
from autolayer.comparison.figure import FIGURE_FILES
from autolayer.core.statistics import Interval

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # + 0.0 turns -0.00 into 0.00


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _layers(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers[:3])) + (".." if len(layers) > 3 else "") or "-"


COLUMNS: dict[str, tuple[str, Callable]] = {
    "spearman": ("Spear-\nman", _number),
    "regret": ("\nregret", _number),
    "picks": ("\npick", _layers),
    "auc_best": ("AUC\nbest", _number),
    "auc_worst": ("AUC\nworst", _number),
    "spearman_difference": ("prediction's Spearman\nis higher by", _interval),
    "share_of_ceiling": ("of\nceiling", _share),
    "coverage": ("in\n80%", _share),
    "winkler": ("Wink-\nler", _number),
    "pearson": ("Pear-\nson", _number),
}
"""Maps fields of a row to heading and format. A narrow terminal shows the first ones; --json has every number."""
LEGEND = (
    "regret: contribution lost by training the top layer; AUC: how often one of the ten best layers scores above "
    "another one, and one of the ten worst below; in 80%, Winkler: how often the 80% interval holds the measured value "
    "and its score (lower is better); random: expected values."
)


@dataclass(frozen=True)
class ComparisonReport:
    """The terminal report: `rich.print(ComparisonReport(found))` fits it to the terminal."""

    found: Comparison
    folder: str | Path | None = None
    """The folder that the comparison was written to, whose files the report names."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        for one in self.found.comparisons:
            yield Text(f"predicted: {_named(one.predicted, one.predicted_for)}", style="dim")
            yield Text(f"measured: {_named(one.measured, one.measured_on)}; {_facts(one)}", style="dim")
            yield _table(one.rows, options.max_width)
            yield Text(one.verdict, style="bold")
            yield from (Text(f"Note: {note}.", style="yellow") for note in one.notes)
            yield ""
        yield Text(LEGEND, style="dim")
        if self.folder is not None:
            yield Text(
                f"Files: {', '.join(str(Path(self.folder) / name) for name in (Comparison.FILE, *FIGURE_FILES))}"
            )


def _table(rows: Sequence[JudgedRanking], width: int) -> Table:
    """Returns a table with as many columns as fit the width, without those that are empty."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    endless = Console(width=999)
    shown = [name for name in COLUMNS if any(getattr(row, name) not in (None, ()) for row in rows)]
    while True:
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        for heading in ("", *(COLUMNS[name][0] for name in shown)):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for row in rows:
            style = {"prediction": "bold green", "baseline": None, "probe": "dim"}[row.kind]
            table.add_row(row.name, *(COLUMNS[name][1](getattr(row, name)) for name in shown), style=style)
        if not shown or Measurement.get(endless, endless.options, table).maximum <= width:
            return table
        shown.pop()


def _named(source: str, setting: str) -> str:
    return source if source == setting else f"{source} ({setting})"


def _facts(judged: Judgement) -> str:
    if judged.best or judged.worst:
        return f"the best {len(judged.best)} and the worst {len(judged.worst)} of {judged.num_layers} layers are known"
    seeds = "one value a layer" if judged.num_seeds == 1 else f"{judged.num_seeds} seeds"
    ceiling = "" if judged.ceiling is None else f", noise ceiling {judged.ceiling:.2f}"
    return f"{len(judged.points)} of {judged.num_layers} layers, {seeds}{ceiling}"
