"""A result for people: the terminal report, and report.html, one file that needs no network and no script.

Both are made from result.json alone, so `autolayer report` can show an old run again. The page leaves out what the
terminal report has and nobody looks up later: the files and the next command.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolayer.progress import duration
from autolayer.results import PickResult, RankingRow

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

MAX_ROWS = 12
"""Rows of the ranking that are shown; the best, tied and baseline layers are shown in any case."""

FILES = (
    ("layer.safetensors", "the trained layer"),
    ("adapter", "the trained adapter, for PEFT and vLLM"),
    ("report.html", "this report, with a figure"),
    ("result.json", "every number"),
)


def verdict(result: PickResult) -> str:
    """The outcome as one plain sentence."""
    best = _layers(result.best_layers)
    are = "is" if len(result.best_layers or ()) < 2 else "are"
    if result.status == "no_signal":
        return f"No training signal: {result.stop_reason or 'the rewards of the base model do not vary.'}"
    if result.verdict == "clear":
        return f"{best} {are} the clear winner{_probability(result)}."
    if result.verdict == "tied" and len(result.tied_layers or ()) < 2:
        return f"{best} {are} taken: what any other choice could gain beyond it cannot matter."
    if result.verdict == "tied":
        highest = [max(result.tied_layers or (), default=None)] == list(result.best_layers or ())
        why = " because it trains fastest" if highest else ""  # backward stops at the lowest trained layer
        return f"{_layers(result.tied_layers)} cannot be told apart; {best.lower()} is taken{why}."
    if result.verdict == "budget_spent":
        return f"No winner is clear; {best.lower()} {are} taken{_probability(result)}."
    if result.trained_layers is not None:
        return f"{_layers(result.trained_layers)} {'was' if len(result.trained_layers) == 1 else 'were'} trained."
    if result.best_layers:
        measured = any(row.measured is not None for row in result.ranking or ())
        return f"Not finished: {best.lower()} {are} best so far{'' if measured else ', by prediction only'}."
    return "Not finished: the base model has a training signal, no layer has been looked at yet."


@dataclass(frozen=True)
class Report:
    """The terminal report: `rich.print(Report(result))` fits it to the terminal."""

    result: PickResult
    folder: Path | None = None
    """The run folder, to name the files in it and the next command."""
    show_all: bool = False
    """Every candidate instead of the first dozen, the tied and the baselines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        result = self.result
        yield Text(f"{result.model}, {result.task}, {result.algorithm}", style="dim")
        shown, hidden = _rows(result, self.show_all)
        if shown:
            yield _ranking_table(result, shown, options.max_width, "#" if options.ascii_only else "█")
            yield Text(_legend(result), style="dim")
        if result.sets:
            yield ""
            yield _sets_table(result)
        if hidden:
            command = f"autolayer report {self.folder or 'RUN_FOLDER'} --all"
            yield Text(f"{hidden} more layers are hidden; `{command}` shows them.")
        yield ""
        yield Text(verdict(result), style="bold")
        if result.stop_reason and result.status != "no_signal":
            yield Text(f"Why the search stopped: {result.stop_reason}")
        yield from map(Text, _scores(result))
        if result.cost:
            yield ""
            yield _cost_table(result)
        yield from map(Text, _share(result))
        yield from (Text(f"Note: {note}", style="yellow") for note in result.notes)
        yield from map(Text, _next_steps(result, self.folder))


def write_html(result: PickResult, path: str | Path) -> Path:
    """Writes the one-file report.

    Returns:
        The path written.
    """
    rows, _ = _rows(result, show_all=True)
    marks = _marks(result)
    body = "".join(
        f"<tr{' class=best' if row.layer in (result.best_layers or ()) else ''}><td>{row.layer}</td>"
        f"<td class=words>{html.escape(', '.join(marks.get(row.layer, ())))}</td>"
        f"<td>{_estimate(row.predicted, row.predicted_low, row.predicted_high)}</td>"
        f"<td>{_estimate(row.measured, row.measured_low, row.measured_high)}</td>"
        f"<td>{_dash(row.measured_steps)}</td><td>{_percent(row.probability_best)}</td></tr>\n"
        for row in rows
    )
    cost = "".join(
        f"<tr><td class=words>{html.escape(name)}</td><td>{_amount(c.generated_tokens)}</td>"
        f"<td>{_amount(c.layer_tokens)}</td><td>{duration(c.seconds)}</td></tr>\n"
        for name, c in result.cost.items()
    )
    lines = [result.stop_reason or "", *_scores(result), *_share(result)]
    lines += [f"Note: {note}" for note in result.notes]
    title = html.escape(f"{result.model}, {result.task}, {result.algorithm}")
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    page = _PAGE.format(
        title=title,
        verdict=html.escape(verdict(result)),
        lines="".join(f"<p>{html.escape(line)}</p>\n" for line in lines if line),
        figure=_figure(result, rows) if rows else "",
        ranking=_RANKING.format(rows=body, legend=html.escape(_legend(result))) if rows else "",
        cost=_COST.format(rows=cost) if cost else "",
        footer=html.escape(f"seed {result.seed}, signature {result.signature}; {versions}"),
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _rows(result: PickResult, show_all: bool) -> tuple[list[RankingRow], int]:
    """The rows to show, baselines that are no candidates last, and the number of hidden ones."""
    ranking = list(result.ranking or ())
    marks = _marks(result)
    shown = [row for place, row in enumerate(ranking) if show_all or place < MAX_ROWS or row.layer in marks]
    present = {row.layer for row in shown}
    for baseline in (result.baselines or {}).values():
        if baseline.layer not in present:
            shown.append(RankingRow(layer=baseline.layer, predicted=baseline.predicted, measured=baseline.measured))
            present.add(baseline.layer)
    return shown, len({row.layer for row in ranking} - present)


def _marks(result: PickResult) -> dict[int, list[str]]:
    """What is to be said about a layer: best, tied, and the baselines that would have taken it."""
    marks: dict[int, list[str]] = {}
    for layer in result.best_layers or ():
        marks.setdefault(layer, []).append("best")
    for layer in result.tied_layers or ():
        if layer not in (result.best_layers or ()):
            marks.setdefault(layer, []).append("tied")
    for name, baseline in (result.baselines or {}).items():
        marks.setdefault(baseline.layer, []).append(name)
    return marks


def _ranking_table(result: PickResult, rows: Sequence[RankingRow], width: int, block: str) -> Table:
    """The widest form that fits: bars are given up first, then the intervals, then the steps."""
    from rich.console import Console
    from rich.measure import Measurement

    endless = Console(width=999)
    for intervals, steps, bar in ((True, True, 10), (True, True, 5), (True, True, 0), (False, True, 0)):
        table = _ranking_form(result, rows, intervals, steps, block * bar)
        if Measurement.get(endless, endless.options, table).maximum <= width:
            return table
    return _ranking_form(result, rows, False, False, "")


def _sets_table(result: PickResult) -> Table:
    """What raced with --top-k."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("layers", "predicted", "measured", "steps", "P(best)"):
        table.add_column(name, justify="right" if name in ("steps", "P(best)") else "left", no_wrap=True)
    for row in result.sets or ():
        best = tuple(row.layers) == tuple(result.best_layers or ())
        table.add_row(
            f"{'>' if best else ' '}{', '.join(map(str, row.layers))}",
            _estimate(row.predicted, None, None),
            _estimate(row.measured, row.measured_low, row.measured_high),
            _dash(row.measured_steps),
            _percent(row.probability_best),
            style="bold green" if best else None,
        )
    return table


def _ranking_form(result: PickResult, rows: Sequence[RankingRow], intervals: bool, steps: bool, bar: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    names = ("predicted", "measured", "steps", "P(best)") if steps else ("pred.", "meas.", "P(best)")
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right" if name in ("steps", "P(best)") else "left", no_wrap=True)
    if bar:
        table.add_column("", no_wrap=True)
    marks = _marks(result)
    values = [row.predicted if row.measured is None else row.measured for row in rows]
    largest = max([value for value in values if value is not None and value > 0], default=1.0)
    for row, value in zip(rows, values, strict=True):
        best = row.layer in (result.best_layers or ())
        cells = [
            f"{'>' if best else ' '}{row.layer}",
            ", ".join(marks.get(row.layer, ())),
            _estimate(row.predicted, row.predicted_low, row.predicted_high, intervals),
            _estimate(row.measured, row.measured_low, row.measured_high, intervals),
            *([_dash(row.measured_steps)] if steps else []),
            _percent(row.probability_best),
        ]
        if bar:
            cells.append(bar[: round(len(bar) * max(value or 0.0, 0.0) / largest)])
        table.add_row(*cells, style="bold green" if best else None)
    return table


def _legend(result: PickResult) -> str:
    reference = {
        "full": "1 = what training all parameters gains",
        "best": "1 = the best run of as many steps, taken as exact",
        None: "none measured yet",
    }[result.contribution_reference]
    return f"Contribution: predicted [80% interval], measured [95% interval]; {reference}."


def _scores(result: PickResult) -> list[str]:
    lines = []
    if result.base_score is not None and result.trained_score is None:
        lines.append(f"Base model: {result.base_score:.3f}")
    if result.base_score is not None and result.trained_score is not None:
        lines.append(f"Score: {result.base_score:.3f} base -> {result.trained_score:.3f} trained")
    if (gain := result.gain) is not None:
        lines.append(
            f"Gain: {gain.value:+.3f}, {gain.level:.0%} interval {gain.low:+.3f} to {gain.high:+.3f} "
            f"(paired, {gain.num_items} items never used before)"
        )
    return [*lines, *_suites(result)]


def _share(result: PickResult) -> list[str]:
    """What finding cost; `train`, which finds nothing, has only measured a learning rate."""
    share, found = result.cost_share_of_full_run, result.verdict is not None or result.trained_layers is None
    if not share:
        return []
    return [f"{'Finding the layer' if found else 'The learning rate'} cost {share:.0%} of one full training run."]


def _suites(result: PickResult) -> list[str]:
    """A line for each evaluation set; of a single one, whose scores are said already, the rates alone."""
    lines = []
    for name, suite in (result.suites or {}).items():
        rates = f"cut off {suite.base_truncated:.0%} -> {suite.trained_truncated:.0%}"
        if suite.base_well_formed is not None and suite.trained_well_formed is not None:
            rates += f", look like an answer {suite.base_well_formed:.0%} -> {suite.trained_well_formed:.0%}"
        samples = f", {suite.samples} samples each" if suite.samples > 1 else ""
        scores = f"  {name} ({suite.num_items} items{samples}): {suite.base_score:.3f} -> {suite.trained_score:.3f}; "
        lines.append((scores if len(result.suites or {}) > 1 else "Completions, base -> trained: ") + rates)
    if (logged := result.reward_metrics) is not None:
        names = sorted({name for metrics in logged.values() for name, value in metrics.items() if value})
        counts = [f"{name} {logged['base'].get(name, 0):.2g} -> {logged['trained'].get(name, 0):.2g}" for name in names]
        lines += [f"The reward says, base -> trained: {', '.join(counts)}"] if counts else []
    return lines


def _cost_table(result: PickResult) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("cost")
    for name in ("tokens generated", "layer-tokens, all", "time"):
        table.add_column(name, justify="right")
    for name, cost in result.cost.items():
        table.add_row(name, _amount(cost.generated_tokens), _amount(cost.layer_tokens), duration(cost.seconds))
    return table


def _next_steps(result: PickResult, folder: Path | None) -> list[str]:
    if folder is None:
        return []
    several = len(result.trained_layers or ()) > 1
    lines = [
        f"  {folder / name}  {what + 's' * (several and what.endswith('layer'))}"
        for name, what in FILES
        if (folder / name).exists()
    ]
    lines = ["", "Files:", *lines] if lines else []
    if result.status == "incomplete":
        return [*lines, "Next: the same command goes on from here (without --until to the end)."]
    if result.gain is not None and result.gain.high < 0:
        return [
            *lines,
            "The trained model is WORSE than the base: do not use it. Its learning rate "
            f"({result.learning_rate or 0:.2g}) may have been too high: give a smaller --learning-rate, or more "
            "--prompts-per-step, which it is measured on.",
        ]
    if result.trained_layers:
        return [*lines, f"Next: autolayer merge {folder} --out {folder / 'merged'}"]
    return lines


def _layers(layers: Sequence[int] | None) -> str:
    """'Layer 3' or 'Layers 2, 3 and 4'."""
    names = [str(layer) for layer in sorted(layers or ())]
    if not names:
        return "No layer"
    return f"Layer {names[0]}" if len(names) == 1 else f"Layers {', '.join(names[:-1])} and {names[-1]}"


def _probability(result: PickResult) -> str:
    known = [row.probability_best for row in result.ranking or () if row.layer in (result.best_layers or ())]
    return f": it is the best with probability {known[0]:.2f}" if len(known) == 1 and known[0] is not None else ""


def _estimate(value: float | None, low: float | None, high: float | None, interval: bool = True) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.2f} [{low:.2f}, {high:.2f}]" if interval and low is not None and high is not None else f"{value:.2f}"
    )


def _dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return "<1%" if 0 < value < 0.005 else f"{value:.0%}"


def _amount(value: float) -> str:
    """1234567 as '1.2M'."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


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
