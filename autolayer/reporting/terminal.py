"""A result for people, in the terminal; page.py writes the same as a file.

Made from result.json alone, so `autolayer report` can show an old run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolayer.core.formatting import format_count, format_seconds
from autolayer.reporting.results import PickResult, RankingRow

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
    if result.verdict == "clear" and "only candidate" in (result.stop_reason or ""):
        return f"{best} {are} taken: there is no other candidate."
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
        shown, hidden = rows_of(result, self.show_all)
        if shown:
            yield _ranking_table(result, shown, options.max_width, "#" if options.ascii_only else "█")
            yield Text(legend(result), style="dim")
        if result.sets:
            yield ""
            yield _sets_table(result)
        yield from map(Text, stopped(result))
        if hidden:
            command = f"autolayer report {self.folder or 'RUN_FOLDER'} --all"
            yield Text(f"{hidden} more layers are hidden; `{command}` shows them.")
        yield ""
        yield Text(verdict(result), style="bold")
        if result.stop_reason and result.status != "no_signal":
            yield Text(f"Why the search stopped: {result.stop_reason}")
        yield from map(Text, scores(result))
        if result.cost:
            yield ""
            yield _cost_table(result)
        yield from map(Text, share(result))
        yield from (Text(f"Note: {note}", style="yellow") for note in result.notes)
        for line in _next_steps(result, self.folder):
            is_command = line.startswith("Next: autolayer")  # to be copied: not broken over two lines
            yield Text(line, no_wrap=is_command, overflow="ignore" if is_command else None)


def rows_of(result: PickResult, show_all: bool) -> tuple[list[RankingRow], int]:
    """The rows to show, baselines that are no candidates last, and the number of hidden ones."""
    ranking = list(result.ranking or ()) if _finds(result) else []
    marks = marks_of(result)
    shown = [row for place, row in enumerate(ranking) if show_all or place < MAX_ROWS or row.layer in marks]
    present = {row.layer for row in shown}
    for baseline in (result.baselines or {}).values() if _finds(result) else ():
        if baseline.layer not in present:
            shown.append(RankingRow(layer=baseline.layer, predicted=baseline.predicted, measured=baseline.measured))
            present.add(baseline.layer)
    return shown, len({row.layer for row in ranking} - present)


def _finds(result: PickResult) -> bool:
    """False for `train`, which was told its layers."""
    return result.verdict is not None or result.trained_layers is None


def marks_of(result: PickResult) -> dict[int, list[str]]:
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
            estimate(row.predicted, None, None),
            estimate(row.measured, row.measured_low, row.measured_high),
            dash(row.measured_steps),
            percent(row.probability_best),
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
        table.add_column("contribution" if len(bar) > 5 else "contr.", no_wrap=True)
    marks = marks_of(result)
    values = [row.predicted if row.measured is None else row.measured for row in rows]
    largest = max([value for value in values if value is not None and value > 0], default=1.0)
    for row, value in zip(rows, values, strict=True):
        best = row.layer in (result.best_layers or ())
        cells = [
            f"{'>' if best else ' '}{row.layer}",
            ", ".join(marks.get(row.layer, ())),
            estimate(row.predicted, row.predicted_low, row.predicted_high, intervals),
            estimate(row.measured, row.measured_low, row.measured_high, intervals),
            *([dash(row.measured_steps)] if steps else []),
            percent(row.probability_best),
        ]
        if bar:
            cells.append(bar[: round(len(bar) * max(value or 0.0, 0.0) / largest)])
        table.add_row(*cells, style="bold green" if best else None)
    return table


def legend(result: PickResult) -> str:
    reference = {
        "full": "1 = what training all parameters gains",
        "best": "1 = the best run of as many steps, taken as exact",
        None: "none measured yet",
    }[result.contribution_reference]
    return f"Contribution: predicted [80% interval], measured [95% interval]; {reference}."


def stopped(result: PickResult) -> list[str]:
    """Which layers' short runs were evaluated on a part of the items only."""
    found = {
        _layers([row.layer] if isinstance(row, RankingRow) else row.layers).lower(): min(seen)
        for row in (*(result.ranking or ()), *(result.sets or ()))
        if (seen := [rung.num_items for rung in row.rungs if rung.num_items is not None])
    }
    if not found:
        return []
    named = ", ".join(f"{name} ({items} items)" for name, items in found.items())
    return [
        f"Evaluated in part, since they were clearly below the base or the best run before: {named}. Their measured "
        "values are rather too low, and their intervals as if so many items had been planned."
    ]


def scores(result: PickResult) -> list[str]:
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


def share(result: PickResult) -> list[str]:
    """What finding cost; `train`, which finds nothing, has only measured a learning rate."""
    share = result.cost_share_of_full_run
    if not share:
        return []
    what = "Finding the layer" if _finds(result) else "What came before training"
    return [f"{what} cost {share:.0%} of one full training run."]


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
        table.add_row(
            name, format_count(cost.generated_tokens), format_count(cost.layer_tokens), format_seconds(cost.seconds)
        )
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


def estimate(value: float | None, low: float | None, high: float | None, interval: bool = True) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.2f} [{low:.2f}, {high:.2f}]" if interval and low is not None and high is not None else f"{value:.2f}"
    )


def dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def percent(value: float | None) -> str:
    if value is None:
        return "-"
    return "<1%" if 0 < value < 0.005 else f"{value:.0%}"
