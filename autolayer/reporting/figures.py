"""The figures of a result as SVG, drawn once for report.html, for notebooks and for files.

Shapes carry classes and no colours (`figures.css.jinja`), so that a page can follow the dark mode. The colours are
distinct in every common colour blindness (Okabe and Ito), and no figure is told by colour alone.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from autolayer.core.depth_prior import BASELINES
from autolayer.core.layer_set import name_layers
from autolayer.reporting.race_table import arm_rows
from autolayer.reporting.results import PickResult
from autolayer.reporting.sentences import layers_as_good

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 62, 584, 46, 266
"""Width of the drawings and edges of their plots. A phone shows them at about half the size, with larger text."""
MOST_LABELS = 8
"""Most learning curves that are named."""


def draw_figures(result: PickResult, rewards: Sequence[float] = ()) -> dict[str, str]:
    """Returns each figure that the result has numbers for, by its name, as the text of an svg element.

    Args:
        result: The result to draw.
        rewards: Mean training reward of each step of the final run.
    """
    drawings = {"contribution": _contribution(result), "race": _race(result), "training": _training(rewards),
                "probes": _probes(result), "cost": _cost(result)}  # fmt: skip
    return {name: ET.tostring(one.svg, encoding="unicode") for name, one in drawings.items() if one is not None}


@dataclass(frozen=True)
class Scale:
    """Places values on a line of the drawing. A value that lies outside is put on its end."""

    low: float
    high: float
    start: float = BOTTOM
    end: float = TOP

    def __call__(self, value: float) -> float:
        """Returns the place of a value."""
        inside = min(max(value, self.low), self.high)
        return self.start + (self.end - self.start) * (inside - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Returns up to about `most` round values of the scale."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        size = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
        return [
            round(number * size, 12) for number in range(math.ceil(self.low / size), math.floor(self.high / size) + 1)
        ]


class Drawing:
    """An svg element that grows by `add`."""

    def __init__(self, title: str, height: float) -> None:
        self.svg = ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img"})
        ET.SubElement(self.svg, "title").text = title

    def add(self, tag: str, kind: str, text: str | None = None, **places: float | str) -> None:
        """Adds a shape of the classes `kind`."""
        given = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in places.items()}
        ET.SubElement(self.svg, tag, {"class": kind, **given}).text = text

    def text(self, text: str, x: float, y: float, kind: str = "ink", anchor: str = "middle") -> None:
        """Adds a text."""
        self.add("text", kind, text, x=x, y=y, **{"text-anchor": anchor})

    def curve(self, kind: str, points: Iterable[tuple[float, float]]) -> None:
        """Adds a line through the points."""
        self.add("polyline", kind, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def _plot(
    title: str, y: Scale, label: str, names: Mapping[float, str], below: str, *, strong: str = "", right: float = RIGHT
) -> Drawing:
    """Returns a drawing with a grid; `names` are the values of the horizontal axis by their places."""
    draw = Drawing(title, BOTTOM + 54)
    ticks = y.ticks(6)
    decimals = max(len(f"{tick:g}".partition(".")[2]) for tick in ticks)
    for tick in ticks:
        draw.add("line", "grid" if tick else "quiet", x1=LEFT, x2=right, y1=y(tick), y2=y(tick))
        draw.text(f"{tick:.{decimals}f}", LEFT - 8, y(tick) + 4, anchor="end")
    draw.text(label, 4, 14, anchor="start")
    for place, name in names.items():
        draw.text(name, place, BOTTOM + 20, "ink strong" if name == strong else "ink")
    draw.text(below, (LEFT + right) / 2, BOTTOM + 44)
    return draw


def _layer_ticks(num_layers: int, keep: Sequence[int] = ()) -> list[int]:
    """Returns the layers that an axis names: at most 13, and `keep` instead of their neighbours."""
    step = -(-num_layers // 13)
    return sorted({*(at for at in range(0, num_layers, step) if all(abs(at - one) >= step for one in keep)), *keep})


def _contribution(result: PickResult) -> Drawing | None:
    rows, best, right = result.ranking or (), result.best_layers or (), WIDTH - 10
    shown = ("predicted", "predicted_low", "predicted_high", "measured")  # the intervals of short runs are far wider
    values = [value for row in rows for name in shown if (value := getattr(row, name)) is not None]
    if not values:
        return None
    y = Scale(min(0.0, *values) - 0.05, max(0.5, *values) + 0.1)
    x = Scale(-0.5, result.num_layers - 0.5, LEFT, right)
    names = {x(layer): str(layer) for layer in _layer_ticks(result.num_layers, best)}
    draw = _plot("Predicted and measured contribution by layer", y, "contribution", names,
                 "layer (0 = next to the embedding)", strong=str(best[0]) if best else "", right=right)  # fmt: skip
    for layer in sorted({*layers_as_good(result), *best}):
        kind = "best" if layer in best else "tied"
        draw.add("rect", kind, x=x(layer - 0.5), y=TOP, width=x(1) - x(0), height=BOTTOM - TOP)
    marks: dict[int, list[str]] = {}
    for name, title in (("position", "depth prior"), ("middle", "middle")):
        if (baseline := (result.baselines or {}).get(name)) is not None:
            marks.setdefault(baseline.layer, []).append(title)
    for place, (layer, titles) in enumerate(sorted(marks.items())):  # the second text stands above the first
        draw.add("line", "quiet dashed", x1=x(layer), x2=x(layer), y1=TOP, y2=BOTTOM)
        draw.text(", ".join(titles), min(max(x(layer), LEFT + 100), right - 90), TOP - 6 - 20 * place)
    for row in rows:
        for name, shift in (("predicted", -3.5), ("measured", 3.5)):  # side by side, not on top of each other
            value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
            at = x(row.layer) + shift
            if low is not None and high is not None:
                draw.add("line", f"{name} faint", x1=at, x2=at, y1=y(low), y2=y(high))
            if value is not None and name == "predicted":
                draw.add("circle", name, cx=at, cy=y(value), r=4)
            elif value is not None:
                draw.add("rect", name, x=at - 3.5, y=y(value) - 3.5, width=7, height=7)
    return draw


def _race(result: PickResult) -> Drawing | None:
    arms = sorted(arm_rows(result), key=lambda arm: arm.is_chosen)  # the chosen one on top
    if not arms:
        return None
    gains = [rung.gain for arm in arms for rung in arm.rungs]
    ends = [end for arm in arms if arm.is_chosen for rung in arm.rungs for end in (rung.low, rung.high)]
    y = Scale(min(0.0, *gains, *ends) - 0.01, max(0.0, *gains, *ends) + 0.01)
    steps = sorted({0, *(rung.steps for arm in arms for rung in arm.rungs)})
    x = Scale(0, steps[-1], LEFT, RIGHT)
    apart = [at for at, after in pairwise(steps) if x(after) - x(at) > 26]
    draw = _plot("Gain of each layer by training step", y, "gain in reward over the base model",
                 {x(at): str(at) for at in (*apart, steps[-1])}, "training step")  # fmt: skip
    named: dict[str, float] = {}
    for arm in arms:
        kind = "measured" if arm.is_chosen else "quiet"
        draw.curve(f"{kind} strong" if arm.is_chosen else kind,
                   [(x(0), y(0)), *((x(rung.steps), y(rung.gain)) for rung in arm.rungs)])  # fmt: skip
        for rung in arm.rungs:
            at = x(rung.steps)
            draw.add("circle", kind, cx=at, cy=y(rung.gain), r=3.5)
            if arm.is_chosen:
                draw.add("line", f"{kind} faint", x1=at, x2=at, y1=y(rung.low), y2=y(rung.high))
        if arm.last.steps == steps[-1] and (arm.is_chosen or len(named) < MOST_LABELS - 1):
            named[arm.name] = min(y(arm.last.gain), named.get(arm.name, BOTTOM))
    place, chosen = 0.0, {arm.name for arm in arms if arm.is_chosen}
    for name in sorted(named, key=lambda name: named[name]):  # from the top; neighbours do not touch
        place = max(named[name] + 4, place + 19)
        draw.text(name, RIGHT + 10, place, "measured strong" if name in chosen else "ink", "start")
    return draw


def _training(rewards: Sequence[float]) -> Drawing | None:
    if len(rewards) < 2:
        return None
    window = max(3, len(rewards) // 10)
    y = Scale(min(rewards) - 0.02, max(rewards) + 0.02)
    x = Scale(1, len(rewards), LEFT, RIGHT)
    names = {x(step): f"{step:g}" for step in x.ticks(8) if step == int(step)}
    draw = _plot("Training reward of the final run by step", y, "mean reward of a step", names, "training step")
    for step, reward in enumerate(rewards, 1):
        draw.add("circle", "train faint", cx=x(step), cy=y(reward), r=3)
    means = [fmean(rewards[max(0, end - window) : end]) for end in range(1, len(rewards) + 1)]
    draw.curve("train strong", [(x(step), y(mean)) for step, mean in enumerate(means, 1)])
    return draw


def _probes(result: PickResult) -> Drawing | None:
    known = {name: {layer: score for layer, score in enumerate(scores) if score is not None}
             for name, scores in (result.probes or {}).items() if name not in BASELINES}  # fmt: skip
    known = {name: scores for name, scores in known.items() if scores}
    if not known:
        return None
    x, height = Scale(0, result.num_layers, 4, WIDTH - 4), 52 * len(known)
    draw = Drawing("Rank of each layer by each probe", height + 24)
    for top, (name, scores) in zip(range(0, height, 52), known.items(), strict=True):
        ranked = sorted(scores.values())
        highest = name_layers([layer for layer, score in scores.items() if score == ranked[-1]])
        draw.text(f"{name}: {highest}", 4, top + 14, anchor="start")
        for layer, score in scores.items():
            share = (ranked.index(score) + 1) / len(ranked)
            draw.add("rect", "probe", x=x(layer), y=top + 22, width=x(1) - x(0) - 1.5, height=20,
                     opacity=f"{0.08 + 0.92 * share**2:.2f}")  # fmt: skip
    for layer in _layer_ticks(result.num_layers):
        draw.text(str(layer), x(layer + 0.5), height + 16)
    return draw


def _cost(result: PickResult) -> Drawing | None:
    finding = sum(cost.layer_tokens for name, cost in result.cost.items() if name != "train")
    if not finding or not result.cost_share_of_full_run:
        return None
    full = finding / result.cost_share_of_full_run
    bars = {"work": {name: cost.layer_tokens / full for name, cost in result.cost.items()}}
    if all(cost.seconds_share is not None for cost in result.cost.values()):
        bars["seconds"] = {name: cost.seconds_share or 0.0 for name, cost in result.cost.items()}
    x, height = Scale(0, max(1.0, *(sum(shares.values()) for shares in bars.values())), 4, WIDTH - 30), 62 * len(bars)
    draw = Drawing("Cost of each stage as a share of one full run", height + 30)
    for tick in x.ticks(6):
        draw.add("line", "quiet dashed" if tick == 1 else "grid", x1=x(tick), x2=x(tick), y1=4, y2=height)
        draw.text(f"{tick:.0%}", x(tick), height + 20, anchor="middle" if tick else "start")
    for top, (title, shares) in zip(range(0, height, 62), bars.items(), strict=True):
        draw.text(title, 8, top + 20, anchor="start")
        start = 0.0
        for name, share in shares.items():
            draw.add("rect", name, x=x(start), y=top + 28, width=max(0.0, x(start + share) - x(start) - 1), height=24)
            start += share
    return draw
