"""The atlas in the terminal, and its figure: measured layers at their relative depth, one numbered row a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from autolayer.comparison.atlas import COLUMNS, Atlas, cells
from autolayer.comparison.figure import MEASURED, plain_figure, save_figure
from autolayer.core.depth_prior import LEVEL, depth_curve

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

LEGEND = (
    "layers: measured ones, of those of the model (ends: only the best or worst ones are known); depth: 0 is next to "
    "the embedding, 1 the last layer; middle: contribution of the middle layer; prior loses: contribution lost by the "
    "measured layer that the depth prior puts first, with several seeds on held-out ones, where it may be below 0. The "
    "prior was fitted to published curves, so its loss on them is no test of it. The best layer of a single training "
    "seed looks better than it is."
)
COLOR_ENDS = (0.0, 1.2)
"""Contributions at the ends of the colours; what lies beyond has the colour of the end."""


@dataclass(frozen=True)
class AtlasReport:
    """The terminal report: `rich.print(AtlasReport(found))` fits it to the terminal. Sources stand below the table."""

    found: Atlas

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        for place, name in enumerate(("", *COLUMNS[:-1])):
            justify = "left" if name in ("setting", "contribution") else "right"
            table.add_column(name.replace(" ", "\n"), justify=justify, no_wrap=place != 1, overflow="fold")
        for number, entry in enumerate(self.found.entries, 1):
            table.add_row(str(number), *map(Text, cells(entry)[:-1]))
        yield table
        yield ""
        for number, entry in enumerate(self.found.entries, 1):
            yield Text(f"{number:2d}  {entry.source}", overflow="fold")
        yield Text(LEGEND, style="dim")


def write_figure(found: Atlas, path: Path) -> None:
    """Draws a row for each source, as PNG or SVG: layers at their relative depth, coloured by contribution."""
    drawn = [(number, entry) for number, entry in enumerate(found.entries, 1) if entry.values]
    with plain_figure((9, 1.6 + 0.2 * len(drawn))) as figure:
        axes = figure.subplots()
        style = {"vmin": COLOR_ENDS[0], "vmax": COLOR_ENDS[1], "cmap": "cividis"}
        grid = np.linspace(0, 1, 100)
        shades = axes.scatter(grid, np.full(len(grid), -1.2), c=LEVEL + depth_curve(grid), s=30, marker="s", **style)
        for row, (_, entry) in enumerate(drawn):
            depth = [layer / max(1, entry.num_layers - 1) for layer in entry.values]
            axes.plot([min(depth), max(depth)], [row, row], color="0.8", linewidth=0.8, zorder=0)
            axes.scatter(depth, [row] * len(depth), c=list(entry.values.values()), s=30, marker="s", **style)
            if entry.best_depth is not None and entry.contribution is not None:
                axes.scatter(entry.best_depth, row, s=70, marker="o", facecolors="none", edgecolors=MEASURED)
        names = [f"{shorten(entry.setting, 52, placeholder='...')}  {number}" for number, entry in drawn]
        axes.set_yticks([-1.2, *range(len(drawn))], ["depth prior", *names], fontsize=6)
        axes.set_ylim(len(drawn) - 0.4, -1.8)
        axes.set_xlabel("relative depth (0 = next to the embedding)")
        axes.set_title("a ring marks the best measured layer", fontsize=8, loc="left")
        figure.colorbar(shades, ax=axes, label="contribution", extend="both", aspect=40)
        save_figure(figure, path)
