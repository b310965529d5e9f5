"""The race as a table: one row for each arm, its gain at each rung, and why it went no further."""

from collections.abc import Sequence
from dataclasses import dataclass

from autolayer.reporting.results import PickResult, RankingRow, Rung, SetRow


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """The short runs of one layer, or set of layers, at one learning rate with one seed."""

    name: str
    """The layers as text: '16' or '10, 11'."""
    rungs: tuple[Rung, ...]
    """Its runs, by steps."""
    is_chosen: bool
    """True if its layers were chosen."""
    ended: str
    """Why it went no further."""

    @property
    def last(self) -> Rung:
        """Its longest run."""
        return self.rungs[-1]


def arm_rows(result: PickResult) -> list[ArmRow]:
    """Returns every arm of the race, those of the most probable layers first; empty where nothing was run."""
    rows: Sequence[RankingRow | SetRow] = result.sets or result.ranking or ()
    longest = max((rung.steps for row in rows for rung in row.rungs), default=0)
    leads: dict[int, tuple[float, str]] = {}
    for row in rows:
        for rung in row.rungs:
            leads[rung.steps] = max(leads.get(rung.steps, (rung.gain, _name(row))), (rung.gain, _name(row)))
    found = []
    for row in rows:
        arms: dict[tuple[float, int], list[Rung]] = {}
        for rung in row.rungs:
            arms.setdefault((rung.learning_rate, rung.seed), []).append(rung)
        deepest = max((rung.steps for rung in row.rungs), default=0)
        is_chosen = _layers(row) == tuple(result.best_layers or ())
        for rungs in arms.values():
            ordered = tuple(sorted(rungs, key=lambda rung: rung.steps))
            last = ordered[-1]
            gain, leader = leads[last.steps]
            if last.steps == longest:
                ended = "chosen" if is_chosen else "ran to the last rung"
            elif last.steps < deepest:
                ended = "another rate or seed of it went on"
            else:
                behind = (
                    f"{last.gain:+.3f} against {gain:+.3f} of {'layers' if result.sets else 'layer'} {leader}"
                    if leader != _name(row)
                    else "expected less"
                )
                chance = "" if row.probability_best is None else f"; P(best) {row.probability_best:.0%}"
                ended = f"dropped after {last.steps} steps: {behind}{chance}"
            found.append(ArmRow(name=_name(row), rungs=ordered, is_chosen=is_chosen, ended=ended))
    return found


def _layers(row: RankingRow | SetRow) -> tuple[int, ...]:
    return (row.layer,) if isinstance(row, RankingRow) else tuple(row.layers)


def _name(row: RankingRow | SetRow) -> str:
    return ", ".join(map(str, _layers(row)))
