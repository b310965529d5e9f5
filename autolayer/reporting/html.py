"""report.html: a result as one file that needs no network and no script.

It leaves out what the terminal report has and nobody looks up later: the files and the next command.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from autolayer.core.formatting import format_count, format_seconds
from autolayer.reporting.results import PickResult, RankingRow
from autolayer.reporting.terminal import (
    dash,
    estimate,
    legend,
    marks_of,
    percent,
    rows_of,
    scores,
    share,
    stopped,
    verdict,
)


def write_html(result: PickResult, path: str | Path) -> Path:
    """Writes the one-file report.

    Returns:
        The path written.
    """
    rows, _ = rows_of(result, show_all=True)
    marks = marks_of(result)
    body = "".join(
        f"<tr{' class=best' if row.layer in (result.best_layers or ()) else ''}><td>{row.layer}</td>"
        f"<td class=words>{html.escape(', '.join(marks.get(row.layer, ())))}</td>"
        f"<td>{estimate(row.predicted, row.predicted_low, row.predicted_high)}</td>"
        f"<td>{estimate(row.measured, row.measured_low, row.measured_high)}</td>"
        f"<td>{dash(row.measured_steps)}</td><td>{percent(row.probability_best)}</td></tr>\n"
        for row in rows
    )
    cost = "".join(
        f"<tr><td class=words>{html.escape(name)}</td><td>{format_count(c.generated_tokens)}</td>"
        f"<td>{format_count(c.layer_tokens)}</td><td>{format_seconds(c.seconds)}</td></tr>\n"
        for name, c in result.cost.items()
    )
    lines = [result.stop_reason or "", *stopped(result), *scores(result), *share(result)]
    lines += [f"Note: {note}" for note in result.notes]
    title = html.escape(f"{result.model}, {result.task}, {result.algorithm}")
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    page = _PAGE.format(
        title=title,
        verdict=html.escape(verdict(result)),
        lines="".join(f"<p>{html.escape(line)}</p>\n" for line in lines if line),
        figure=_figure(result, rows) if rows else "",
        ranking=_RANKING.format(rows=body, legend=html.escape(legend(result))) if rows else "",
        cost=_COST.format(rows=cost) if cost else "",
        footer=html.escape(f"seed {result.seed}, signature {result.signature}; {versions}"),
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _figure(result: PickResult, rows: Sequence[RankingRow]) -> str:
    """Predicted (circles) and measured (squares) contribution by depth, with intervals."""
    points = [(row.layer, "p", row.predicted, row.predicted_low, row.predicted_high) for row in rows]
    points += [(row.layer, "m", row.measured, row.measured_low, row.measured_high) for row in rows]
    known = [value for point in points for value in point[2:] if value is not None]
    if not known:
        return ""
    bottom, top = min(0.0, *known), max(0.0, *known)
    top += (top == bottom) * 1.0

    def x(layer: float) -> float:
        return 50 + 640 * (layer + 0.5) / result.num_layers

    def y(value: float) -> float:
        return 200 - 180 * (value - bottom) / (top - bottom)

    every = max(1, result.num_layers // 12)
    shapes = [f'<line class=axis x1=50 x2=690 y1="{y(0):.1f}" y2="{y(0):.1f}" />']
    shapes += [
        f'<text x="{x(layer):.1f}" y=222 text-anchor=middle>{layer}</text>'
        for layer in range(0, result.num_layers, every)
    ]
    shapes += [f'<text x=42 y="{y(v) + 4:.1f}" text-anchor=end>{v:.2f}</text>' for v in sorted({bottom, 0.0, top})]
    for layer, kind, value, low, high in points:
        if value is None:
            continue
        place = x(layer) + (-3 if kind == "p" else 3)  # side by side, not on top of each other
        if low is not None and high is not None:
            shapes.append(
                f'<line class={kind} x1="{place:.1f}" x2="{place:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" />'
            )
        if kind == "p":
            shapes.append(f'<circle class=p cx="{place:.1f}" cy="{y(value):.1f}" r=3.5 />')
        else:
            shapes.append(f'<rect class=m x="{place - 4:.1f}" y="{y(value) - 4:.1f}" width=8 height=8 />')
    return _FIGURE.format(shapes="\n".join(shapes))


_FIGURE = """<figure><svg viewBox="0 0 700 240" role=img aria-label="Contribution by layer">
{shapes}
<text x=370 y=238 text-anchor=middle>layer (0 = next to the embedding)</text></svg>
<figcaption><span class=pk>●</span> predicted <span class=mk>■</span> measured; lines are intervals</figcaption>
</figure>
"""
_RANKING = """<table><tr><th>layer<th class=words><th>predicted<th>measured<th>steps<th>P(best)</tr>
{rows}</table><p class=dim>{legend}</p>
"""
_COST = """<table><tr><th class=words>cost<th>tokens generated<th>layer-tokens, generation included<th>time</tr>
{rows}</table>
"""
_PAGE = """<!DOCTYPE html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>autolayer: {title}</title><style>
:root {{ color-scheme: light dark; --p: light-dark(#0072b2, #56b4e9); --m: light-dark(#d55e00, #e69f00); }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} .dim, footer, figcaption {{ opacity: .7; font-size: .85rem; }} figure {{ margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }}
th, td {{ text-align: right; padding: .15rem .7rem .15rem 0; }} .words {{ text-align: left; }}
.best {{ font-weight: bold; }}
svg {{ width: 100%; }}
svg text {{ font-size: 11px; fill: currentColor; }} .axis {{ stroke: currentColor; opacity: .4; }}
line.p {{ stroke: var(--p); }} line.m {{ stroke: var(--m); }}
circle.p {{ fill: var(--p); }} rect.m {{ fill: var(--m); }}
.pk {{ color: var(--p); }} .mk {{ color: var(--m); }}
</style></head><body>
<p class=dim>autolayer: {title}</p>
<h1>{verdict}</h1>
{lines}{figure}{ranking}{cost}<footer>{footer}</footer>
</body></html>
"""
