"""The figure of a comparison: contribution by depth, measured and predicted, and the baselines' choices.

matplotlib is an extra (`autolayer[figures]`) and is imported only when a figure is drawn. The files are the same for
the same numbers: no date, no random ids. Left out on purpose: single probes, whose scales have nothing in common.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolayer.comparison.comparison import FIGURE_FILES, Comparison, Judgement, LayerPoint
from autolayer.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURED, PREDICTED = "#d55e00", "#0072b2"
"""The colours of report.html, distinct in every common colour blindness (Okabe and Ito)."""
MOST_PICKS = 3
"""Most tied picks of a row that are marked in the figure."""
STYLE = {"svg.hashsalt": "autolayer", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "figure.dpi": 150, "path.simplify": False}  # fmt: skip


def check_matplotlib() -> None:
    """Checks that matplotlib is installed, before the work.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError(
            "--out draws a figure and matplotlib is not installed: pip install 'autolayer[figures]', or leave --out "
            "away and keep the numbers with --json."
        ) from None


def write_figure(found: Comparison, folder: Path) -> list[Path]:
    """Draws one panel per measured file.

    Returns:
        The files written: comparison.png and comparison.svg.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**mpl.rcParamsDefault, **STYLE}  # not somebody's matplotlibrc
    with mpl.rc_context(style):
        count = len(found.comparisons)
        figure = Figure(figsize=(7, 3.4 * count), layout="constrained")
        FigureCanvasAgg(figure)  # whatever backend the machine has: nothing is shown
        for axes, judged in zip(figure.subplots(count, squeeze=False)[:, 0], found.comparisons, strict=True):
            _panel(axes, judged)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in FIGURE_FILES]
        for path in paths:
            # The date, and in PNG the version of matplotlib, would make equal figures differ.
            metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, metadata=metadata)
    return paths


def _panel(axes: Axes, judged: Judgement) -> None:
    points = judged.points
    layers = [point.layer for point in points]
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.axhline(1, color="0.8", linewidth=0.8, linestyle=":", zorder=0)
    measured = [point.measured for point in points]
    errors = _errors(points)
    label = f"measured [{judged.level:.0%} interval]" if errors else "measured"
    axes.errorbar(layers, measured, yerr=errors, fmt="s", color=MEASURED, markersize=4, linewidth=1, label=label)
    handles, labels = axes.get_legend_handles_labels()
    known = [point for point in points if point.predicted is not None]
    if known:
        # A score on a scale of its own would squash the measured curve: it gets an axis of its own.
        side = axes if judged.is_contribution else axes.twinx()
        _prediction(side, known)
        if side is not axes:
            side.set_ylabel("predicted (own scale)")
            side.spines["right"].set_visible(True)
        handles, labels = _join(axes, side)
    _baselines(axes, judged)
    axes.set_xlim(-0.6, judged.num_layers - 0.4)
    axes.set_xticks(range(0, judged.num_layers, max(1, judged.num_layers // 14)))
    axes.set_xlabel("layer (0 = next to the embedding)")
    axes.set_ylabel("contribution")
    axes.set_title(_escaped(_title(judged)), fontsize=9, loc="left", pad=22)
    axes.legend(handles, labels, frameon=False, fontsize=8, loc="best")


def _prediction(axes: Axes, points: Sequence[LayerPoint]) -> None:
    layers = [point.layer for point in points]
    band = all(point.predicted_low is not None and point.predicted_high is not None for point in points)
    label = "predicted [80% interval]" if band else "predicted"
    axes.plot(layers, [point.predicted or 0.0 for point in points], "o-", color=PREDICTED, markersize=3, linewidth=1,
              label=label)  # fmt: skip
    if band:
        lows = [point.predicted_low or 0.0 for point in points]
        highs = [point.predicted_high or 0.0 for point in points]
        axes.fill_between(layers, lows, highs, color=PREDICTED, alpha=0.15, linewidth=0)


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


def _errors(points: Sequence[LayerPoint]) -> tuple[list[float], list[float]] | None:
    """Returns distances to both ends; 0 on the side where a value is outside of its own interval."""
    below, above = [], []
    for point in points:
        if point.measured_low is None or point.measured_high is None:
            return None
        below.append(max(0.0, point.measured - point.measured_low))
        above.append(max(0.0, point.measured_high - point.measured))
    return below, above


def _join(axes: Axes, side: Axes) -> tuple[list, list]:
    handles, labels = axes.get_legend_handles_labels()
    if side is axes:
        return handles, labels
    more, names = side.get_legend_handles_labels()
    return handles + more, labels + names


def _title(judged: Judgement) -> str:
    rho = judged.prediction.spearman if judged.prediction is not None else None
    numbers = [] if rho is None else [f"Spearman {rho:.2f}"]
    numbers += [] if judged.ceiling is None else [f"noise ceiling {judged.ceiling:.2f}"]
    return "; ".join([judged.measured_on, *numbers])


def _escaped(text: str) -> str:
    """Escapes dollar signs, which would start a formula."""
    return text.replace("$", r"\$")
