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


ESTIMATES = ("predicted", "measured", "expected")
"""Columns of `value_columns` whose cells may have an interval."""


def value_columns(rows: Sequence[RankingRow | SetRow], intervals: Sequence[str] = ESTIMATES) -> dict[str, list[str]]:
    """Returns the cells of the rows by the heading of their column, without columns that say nothing.

    `intervals` names the columns whose estimates are shown with an interval.
    """

    def estimates(name: str) -> list[str]:
        ends = ("", "_low", "_high")
        values = [[getattr(row, name + end, None) for end in ends] for row in rows]
        return [_estimate(*each) if name in intervals else _estimate(each[0]) for each in values]

    columns = {
        "predicted": estimates("predicted"),
        "measured": estimates("measured"),
        "steps": ["-" if row.measured_steps is None else str(row.measured_steps) for row in rows],
        "expected": estimates("expected"),
        "P(best)": [_percent(row.probability_best) for row in rows],
        "cost": [_percent(getattr(row, "relative_cost", None)) for row in rows],
    }
    return {heading: cells for heading, cells in columns.items() if set(cells) != {"-"}}


def _percent(share: float | None) -> str:
    return "-" if share is None else "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _estimate(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Formats a value with its interval: '0.90 [0.50, 1.30]'."""
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
