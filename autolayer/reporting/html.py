"""The report of a result as one HTML file that needs no network and no script.

The template is `report.html.jinja` in the folder of this file. Unlike the terminal, the page does not list the files of
the run and the next command, which matter only right after a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from autolayer.core.formatting import format_count, format_seconds
from autolayer.reporting.ranking import estimate_cell, marks_by_layer, percent_cell, shown_rows, steps_cell
from autolayer.reporting.results import PickResult, RankingRow
from autolayer.reporting.sentences import cost_line, detail_lines, headline, legend

LEFT, WIDTH, TOP, HEIGHT = 50, 640, 20, 180
"""Area of the figure in which points are drawn, in the units of its viewBox."""


def write_html(result: PickResult, path: str | Path) -> Path:
    """Writes the report as one file.

    Args:
        result: The result to show.
        path: The file to write.

    Returns:
        The path of the file.
    """
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    cells = (estimate_cell, steps_cell, percent_cell, format_count, format_seconds)
    environment.globals.update({function.__name__: function for function in cells})
    rows = shown_rows(result, show_all=True).rows
    page = environment.get_template("report.html.jinja").render(
        result=result,
        headline=headline(result),
        lines=[*detail_lines(result), cost_line(result), *(f"Note: {note}" for note in result.notes)],
        rows=rows,
        marks=marks_by_layer(result),
        legend=legend(result),
        figure=draw(rows, result.num_layers),
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


@dataclass(frozen=True, kw_only=True)
class Label:
    """A tick of an axis: where it is on the axis, and its text."""

    place: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of the figure in the drawing's coordinates; `low` and `high` are the ends of its interval, or None."""

    kind: str
    """'predicted', drawn as a circle, or 'measured', drawn as a square."""
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Contribution by depth, in the coordinates of the drawing."""

    zero: float
    """Height of the line at contribution 0."""
    layers: Sequence[Label]
    values: Sequence[Label]
    points: Sequence[Point]


def draw(rows: Sequence[RankingRow], num_layers: int) -> Figure | None:
    """Computes the figure of the predicted and measured contributions by depth.

    Args:
        rows: Rows of the ranking.
        num_layers: Blocks of the model.

    Returns:
        The figure, or None if no row has a value.
    """
    values = [value for row in rows for value in _numbers(row) if value is not None]
    if not values:
        return None
    bottom, top = min(0.0, *values), max(0.0, *values)
    top += (top == bottom) * 1.0

    def x(layer: float) -> float:
        return LEFT + WIDTH * (layer + 0.5) / num_layers

    def y(value: float) -> float:
        return TOP + HEIGHT * (top - value) / (top - bottom)

    def points() -> Iterator[Point]:
        for row in rows:
            predicted, predicted_low, predicted_high, measured, measured_low, measured_high = _numbers(row)
            # The two are drawn side by side, not on top of each other.
            for kind, shift, value, low, high in (
                ("predicted", -3, predicted, predicted_low, predicted_high),
                ("measured", 3, measured, measured_low, measured_high),
            ):
                if value is not None:
                    ends = (None, None) if low is None or high is None else (y(low), y(high))
                    yield Point(kind=kind, x=x(row.layer) + shift, y=y(value), low=ends[0], high=ends[1])

    return Figure(
        zero=y(0.0),
        layers=[Label(place=x(n), text=str(n)) for n in range(0, num_layers, max(1, num_layers // 12))],
        values=[Label(place=y(value), text=f"{value:.2f}") for value in sorted({bottom, 0.0, top})],
        points=list(points()),
    )


def _numbers(row: RankingRow) -> Sequence[float | None]:
    return (
        row.predicted, row.predicted_low, row.predicted_high, row.measured, row.measured_low, row.measured_high,
    )  # fmt: skip
