"""Builds the ranking of a result: predicted contributions, and gains of short runs as shares of the best gain."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from autolayer.probes import PROBES
from autolayer.probes.probe_report import ProbeReport
from autolayer.reporting.results import Baseline, RankingRow, SetRow
from autolayer.search import records

RankedRow = TypeVar("RankedRow", RankingRow, SetRow)


def predicted_rows(report: ProbeReport, relative_cost: Callable[[int], float]) -> tuple[RankingRow, ...]:
    """Returns a row for every candidate, the best prediction first."""
    rows = [
        RankingRow(
            layer=layer,
            predicted=predicted,
            predicted_low=low,
            predicted_high=high,
            relative_cost=relative_cost(layer),
        )
        for layer, predicted, low, high in zip(report.layers, report.predicted, report.low, report.high, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -(row.predicted or 0.0)))


def raced_rows(outcome: records.RaceOutcome, predicted: Sequence[RankingRow]) -> tuple[RankingRow, ...]:
    """Returns the candidates in the order of the race, then those that did not race in the order predicted."""
    by_layer, best_at = {row.layer: row for row in predicted}, best_gains(outcome)
    rows = [
        replace(
            _measured(row, by_layer.pop(row.layers[0]), best_at),
            expected=None if row.expected_low is None else row.expected,
            expected_low=row.expected_low,
            expected_high=row.expected_high,
        )
        for row in outcome.ranking
    ]
    return (*rows, *by_layer.values())


def raced_sets(outcome: records.RaceOutcome) -> tuple[SetRow, ...]:
    """Returns the sets of layers of --top-k in the order of the race."""
    best_at = best_gains(outcome)
    return tuple(_measured(row, SetRow(layers=row.layers, predicted=row.predicted), best_at) for row in outcome.ranking)


def outcome_fields(outcome: records.RaceOutcome, *, single: bool) -> dict[str, Any]:
    """Returns the fields of a result that say what the race has decided; `single`: single layers raced, no sets."""
    tied = sorted({*(layers[0] for layers in outcome.tied), *outcome.best}) if outcome.tied and single else ()
    return {
        "best_layers": outcome.best,
        "tied_layers": tuple(tied),
        "verdict": outcome.verdict,
        "stop_reason": outcome.stop_reason,
        "expected_regret": outcome.expected_regret,
        "learning_rate": outcome.winner.learning_rate,
    }


def predicted_baselines(report: ProbeReport, rows: Sequence[RankingRow]) -> dict[str, Baseline]:
    """Returns the layer that each baseline would have chosen, with its predicted and measured contribution."""
    by_layer = {row.layer: row for row in rows}
    found = {}
    for name, probe in PROBES.items():
        if probe.is_baseline:
            scores = report.scores[name]
            row = by_layer[report.layers[scores.index(max(scores))]]
            found[name] = Baseline(layer=row.layer, predicted=row.predicted, measured=row.measured)
    return found


def best_gains(outcome: records.RaceOutcome) -> dict[int, float]:
    """Returns the largest gain of the short runs at each step: the unit of contribution among runs of that length."""
    best: dict[int, float] = {}
    for rung in (rung for row in outcome.ranking for rung in row.rungs):
        best[rung.steps] = max(best.get(rung.steps, 0.0), rung.gain)
    return best


def _measured(row: records.RacedCandidate, predicted: RankedRow, best_at: dict[int, float]) -> RankedRow:
    """Adds what the race measured, relative to the best gain after equally many steps."""
    found = replace(predicted, probability_best=row.probability_best, rungs=row.rungs)
    if (rung := row.measured) is None:
        return found
    found = replace(found, measured_steps=rung.steps)
    if (unit := best_at[rung.steps]) <= 0:
        return found
    low, high = rung.low / unit, rung.high / unit
    return replace(found, measured=rung.gain / unit, measured_low=low, measured_high=high)
