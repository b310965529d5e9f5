"""The rows of a ranking that a report shows, and the text of their cells."""

from collections.abc import Sequence
from dataclasses import dataclass

from autolayer.reporting.results import PickResult, RankingRow
from autolayer.reporting.sentences import found_by_search

MAX_ROWS = 12
"""Rows of the ranking that are shown; the best, tied and baseline layers are shown in any case."""


@dataclass(frozen=True, kw_only=True)
class ShownRows:
    """The part of a ranking that a report shows."""

    rows: Sequence[RankingRow]
    num_hidden: int


def shown_rows(result: PickResult, show_all: bool) -> ShownRows:
    """Chooses the rows to show; baselines that are not among the candidates come last."""
    if not found_by_search(result):
        return ShownRows(rows=(), num_hidden=0)
    ranking, marks = list(result.ranking or ()), marks_by_layer(result)
    rows = [row for place, row in enumerate(ranking) if show_all or place < MAX_ROWS or row.layer in marks]
    present = {row.layer for row in rows}
    for baseline in (result.baselines or {}).values():
        if baseline.layer not in present:
            rows.append(RankingRow(layer=baseline.layer, predicted=baseline.predicted, measured=baseline.measured))
            present.add(baseline.layer)
    return ShownRows(rows=rows, num_hidden=len({row.layer for row in ranking} - present))


def marks_by_layer(result: PickResult) -> dict[int, list[str]]:
    """Returns the marks of each layer: best, tied, and the names of the baselines that would have chosen it."""
    marks: dict[int, list[str]] = {}
    for layer in result.best_layers or ():
        marks.setdefault(layer, []).append("best")
    for layer in result.tied_layers or ():
        if layer not in (result.best_layers or ()):
            marks.setdefault(layer, []).append("tied")
    for name, baseline in (result.baselines or {}).items():
        marks.setdefault(baseline.layer, []).append(name)
    return marks


def estimate_cell(value: float | None, low: float | None, high: float | None, interval: bool = True) -> str:
    """Formats a value with its interval: '0.90 [0.50, 1.30]'."""
    if value is None:
        return "-"
    known = interval and low is not None and high is not None
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if known else f"{value:.2f}"


def steps_cell(value: int | None) -> str:
    """Formats a number of steps, or a dash."""
    return "-" if value is None else str(value)


def percent_cell(value: float | None) -> str:
    """Formats a probability: '32%', '<1%', or a dash."""
    if value is None:
        return "-"
    return "<1%" if 0 < value < 0.005 else f"{value:.0%}"
