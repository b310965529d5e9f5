"""The rows of a ranking that a report shows, and the text of their cells."""

from collections.abc import Sequence

from autolayer.reporting.results import PickResult, RankingRow, SetRow
from autolayer.reporting.sentences import found_by_search

MAX_ROWS = 12
"""Rows of the ranking that are shown; the best, tied and baseline layers are shown in any case."""


def shown_rows(result: PickResult, show_all: bool) -> Sequence[RankingRow]:
    """Chooses the rows to show; baselines that are not among the candidates come last."""
    if not found_by_search(result):
        return ()
    marks = marks_by_layer(result)
    rows = [row for place, row in enumerate(result.ranking or ()) if show_all or place < MAX_ROWS or row.layer in marks]
    baselines = {baseline.layer: baseline for baseline in (result.baselines or {}).values()}
    others = [baselines[layer] for layer in baselines if layer not in {row.layer for row in rows}]
    return [*rows, *(RankingRow(layer=one.layer, predicted=one.predicted, measured=one.measured) for one in others)]


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


def value_cells(row: RankingRow | SetRow, intervals: bool = True) -> list[str]:
    """Returns the predicted and the measured contribution, the steps, and the probability of being the best."""
    probability = row.probability_best
    return [
        _estimate(row.predicted, getattr(row, "predicted_low", None), getattr(row, "predicted_high", None), intervals),
        _estimate(row.measured, row.measured_low, row.measured_high, intervals),
        "-" if row.measured_steps is None else str(row.measured_steps),
        "-" if probability is None else "<1%" if 0 < probability < 0.005 else f"{probability:.0%}",
    ]


def _estimate(value: float | None, low: float | None, high: float | None, interval: bool) -> str:
    """Formats a value with its interval: '0.90 [0.50, 1.30]'."""
    if value is None:
        return "-"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if interval and None not in (low, high) else f"{value:.2f}"
