"""The figure of a comparison: contribution by depth, measured and predicted, and the baselines' choices.

matplotlib is an extra (`autolayer[figures]`), imported only when a figure is drawn. The same numbers give the same
files, without date and random ids. Single probes are left out on purpose, because their scales have nothing in common.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolayer.comparison.comparison import Comparison, Judgement, LayerPoint
from autolayer.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_FILES = ("comparison.png", "comparison.svg")
MEASURED, PREDICTED = "#d55e00", "#0072b2"
"""The colours of report.html, distinct in every common colour blindness (Okabe and Ito)."""
MOST_PICKS = 3
"""Most tied picks of a row that are marked in the figure."""
STYLE = {"svg.hashsalt": "autolayer", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
         "figure.dpi": 150, "text.parse_math": False}  # fmt: skip


def check_matplotlib(option: str) -> None:
    """Raises ConfigError if matplotlib, which an option draws with, is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError(
            f"{option} draws a figure and matplotlib is not installed: pip install -e '.[figures]', or leave {option} "
            "away and keep the numbers with --json."
        ) from None


@contextmanager
def plain_figure(size: tuple[float, float]) -> Iterator[Figure]:
    """Yields an empty figure of some inches; draw and save it inside of the block, whose style nobody's settings alter.

    It is drawn with whatever backend the machine has: nothing is shown.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**mpl.rcParamsDefault, **STYLE}  # not somebody's matplotlibrc
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes PNG or SVG, by the name of the file."""
    # The date, and in PNG the version of matplotlib, would make equal figures differ.
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def write_figure(found: Comparison, folder: Path) -> None:
    """Draws one panel per measured file, as PNG and SVG."""
    count = len(found.comparisons)
    with plain_figure((7, 3.4 * count)) as figure:
        for axes, judged in zip(figure.subplots(count, squeeze=False)[:, 0], found.comparisons, strict=True):
            _panel(axes, judged)
        handles = [axes.get_legend_handles_labels() for axes in figure.axes]
        named = {label: handle for pair in handles for handle, label in zip(*pair, strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        for name in FIGURE_FILES:
            save_figure(figure, folder / name)


def _panel(axes: Axes, judged: Judgement) -> None:
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.axhline(1, color="0.8", linewidth=0.8, linestyle=":", zorder=0)
    known = [(point.layer, point.measured) for point in judged.points if point.measured is not None]
    bars = _bars(judged.points)
    label = f"measured [{judged.level:.0%} interval]" if bars else "measured"
    axes.errorbar(*zip(*known, strict=True), yerr=bars, fmt="s", color=MEASURED, markersize=4, linewidth=1, label=label)
    for layers, marker, name in ((judged.best, "^", "best"), (judged.worst, "v", "worst")):
        if layers:  # known to be among the best or the worst, at the lower edge because no value is known
            axes.plot(layers, [0.03] * len(layers), marker, color=MEASURED, markersize=4, alpha=0.6,
                      label=f"{name} layers", transform=axes.get_xaxis_transform())  # fmt: skip
    if judged.points[0].predicted is not None:
        _prediction(axes, judged.points)
    _baselines(axes, judged)
    axes.set_xlim(-0.6, judged.num_layers - 0.4)
    axes.set_xticks(range(0, judged.num_layers, max(1, judged.num_layers // 14)))
    axes.set_xlabel("layer (0 = next to the embedding)")
    axes.set_ylabel("contribution")
    rho = next((row.spearman for row in judged.rows if row.kind == "prediction"), None)
    numbers = [] if rho is None else [f"Spearman {rho:.2f}"]
    numbers += [] if judged.ceiling is None else [f"noise ceiling {judged.ceiling:.2f}"]
    axes.set_title("; ".join([judged.measured_on, *numbers]), fontsize=9, loc="left", pad=22)


def _prediction(axes: Axes, points: Sequence[LayerPoint]) -> None:
    layers = [point.layer for point in points]
    lows, highs = ([getattr(point, f"predicted_{end}") for point in points] for end in ("low", "high"))
    if None in lows or None in highs:
        # A score without interval may be on a scale of its own, which would squash the measured curve.
        axes, label = axes.twinx(), "predicted (own scale)"
        axes.set_ylabel(label)
    else:
        label = "predicted [80% interval]"
        axes.fill_between(layers, lows, highs, color=PREDICTED, alpha=0.15, linewidth=0)
    values = [point.predicted or 0.0 for point in points]
    axes.plot(layers, values, "o-", color=PREDICTED, markersize=3, linewidth=1, label=label)


def _baselines(axes: Axes, judged: Judgement) -> None:
    """Marks the layer that each baseline and the prediction would have picked, with its name above the panel."""
    taken: dict[int, list[str]] = {}
    for row in judged.rows:
        if row.kind != "probe" and len(row.picks) <= MOST_PICKS:
            for layer in row.picks:
                taken.setdefault(layer, []).append(row.name)
    for place, (layer, names) in enumerate(sorted(taken.items())):
        color = PREDICTED if "prediction" in names else "0.45"
        axes.axvline(layer, color=color, linewidth=0.8, linestyle="--", zorder=0)
        height = 1.01 + 0.05 * (place % 2)  # neighbours would lie on each other
        axes.text(layer, height, ", ".join(names), transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                  fontsize=6.5, color=color)  # fmt: skip


def _bars(points: Sequence[LayerPoint]) -> list[list[float]] | None:
    """Returns distances to both ends; 0 on the side where a value is outside of its own interval."""
    known = [
        (point.measured - point.measured_low, point.measured_high - point.measured)
        for point in points
        if point.measured is not None and point.measured_low is not None and point.measured_high is not None
    ]
    if len(known) < len(points):
        return None
    return [[max(0.0, pair[side]) for pair in known] for side in (0, 1)]
