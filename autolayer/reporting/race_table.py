"""The race as a table: one row for each arm, its gain at each rung, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

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
    """How it ended: the result does not record whether a layer was dropped, failed, or was cut off by the budget."""

    @property
    def last(self) -> Rung:
        """Its longest run."""
        return self.rungs[-1]


def arm_rows(result: PickResult) -> list[ArmRow]:
    """Returns every arm of the race, those of the most probable layers first; empty where nothing was run."""
    rows: Sequence[RankingRow | SetRow] = result.sets or result.ranking or ()
    runs = [(rung.steps, rung.gain, _name(row)) for row in rows for rung in row.rungs]
    longest, found = max((steps for steps, _, _ in runs), default=0), []
    for row in rows:
        deepest = max((rung.steps for rung in row.rungs), default=0)
        is_chosen = _layers(row) == tuple(result.best_layers or ())
        by_rate_and_seed = groupby(sorted(row.rungs, key=lambda rung: (rung.seed, rung.learning_rate, rung.steps)),
                                   key=lambda rung: (rung.seed, rung.learning_rate))  # fmt: skip
        for rungs in (tuple(group) for _, group in by_rate_and_seed):
            last = rungs[-1]
            above = [run[1:] for run in runs if run[0] == last.steps and run[1] > last.gain and run[2] != _name(row)]
            if last.steps < deepest:
                ended = "another rate or seed of it went on"
            elif is_chosen:
                ended = "chosen"
            elif last.steps == longest:
                ended = "ran to the last rung"
            else:
                against = ", and no other gained more"
                if above:
                    gain, leader = max(above)
                    against = f" against {gain:+.3f} of {'layers' if result.sets else 'layer'} {leader}"
                chance = "" if row.probability_best is None else f"; P(best) {row.probability_best:.0%}"
                ended = f"not trained further after {last.steps} steps: {last.gain:+.3f}{against}{chance}"
            found.append(ArmRow(name=_name(row), rungs=rungs, is_chosen=is_chosen, ended=ended))
    return found


def _layers(row: RankingRow | SetRow) -> tuple[int, ...]:
    return (row.layer,) if isinstance(row, RankingRow) else tuple(row.layers)


def _name(row: RankingRow | SetRow) -> str:
    return ", ".join(map(str, _layers(row)))
