"""The report of a result as one HTML file (`report.html.jinja`) that needs no network and no script.

Unlike the terminal, the page does not list the files of the run and the next command, which matter only right after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from autolayer.core.formatting import format_count, format_seconds
from autolayer.reporting.ranking import marks_by_layer, shown_rows, value_columns
from autolayer.reporting.results import PickResult, RankingRow
from autolayer.reporting.sentences import cost_line, detail_lines, headline, legend


def html_page(result: PickResult) -> str:
    """Returns the report as the text of one file."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    rows = shown_rows(result, show_all=True)
    return environment.get_template("report.html.jinja").render(
        result=result,
        headline=headline(result),
        lines=[*detail_lines(result), cost_line(result), *(f"Note: {note}" for note in result.notes)],
        rows=rows,
        marks=marks_by_layer(result),
        legend=legend(result),
        axes=axes_of(rows, result.num_layers),
        columns=value_columns(rows) if rows else {},
        format_count=format_count,
        format_seconds=format_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Places layers and contributions in the figure, in the units of its viewBox."""

    num_layers: int
    bottom: float
    top: float

    def x(self, layer: float) -> float:
        """Returns the horizontal place of a layer."""
        return round(50 + 640 * (layer + 0.5) / self.num_layers, 1)

    def y(self, value: float) -> float:
        """Returns the vertical place of a contribution."""
        return round(20 + 180 * (self.top - value) / (self.top - self.bottom), 1)


def axes_of(rows: Sequence[RankingRow], num_layers: int) -> Axes | None:
    """Returns axes that hold 0 and every value and interval of the rows, or None if no row has a value."""
    ends = ("predicted", "predicted_low", "predicted_high", "measured", "measured_low", "measured_high")
    values = [value for row in rows for name in ends if (value := getattr(row, name)) is not None]
    if not values:
        return None
    bottom, top = min(0.0, *values), max(0.0, *values)
    return Axes(num_layers=num_layers, bottom=bottom, top=top if top > bottom else top + 1.0)
