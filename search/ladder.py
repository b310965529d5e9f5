"""How wide and how long: the ladder of rungs that fits a budget.

Synchronous halving: every rung has twice the steps of the one before and half of its layers, and an arm that goes
up a rung continues from its checkpoint. A prediction often misses the best layer (examples/RESULTS.md), so the race is
first wide, then long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.core.budget import MIN_WIDTH, scout_steps
from autolayer.core.costs import Cost
from autolayer.search.records import Candidate, RaceConfig

LADDER_SHARE, LONG_LADDER_SHARE = 0.9, 0.6
"""Share of the budget for the ladder. The rest pays for second learning rates and fresh seeds of the finalists, which
are worth more than longer runs only at the end of a long ladder."""
LONG_FROM = 0.5
"""Share of the full run from which a ladder counts as long. The error of early values (`DRIFT` and `EARLY` in
`curve_model`) is then no larger than the joint effect of learning rate and seed (`RATE_SD` and `SEED_SD` there)."""
NUM_FINALISTS = 2


@dataclass(frozen=True, kw_only=True)
class PlannedRung:
    """All arms at this step are compared with each other."""

    step: int
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What the race starts with. It may do less (it stops early) or more (what is left goes to the finalists)."""

    rungs: tuple[PlannedRung, ...]
    """Empty if the budget does not pay for comparing two layers."""
    first: tuple[Candidate, ...]
    """The candidates of the first rung, best prediction first."""
    planned_cost: Cost
    """The ladder's, for average candidates."""
    is_long: bool = False
    """True if the budget keeps a part back for fresh seeds of the finalists."""


def plan_ladder(config: RaceConfig, candidates: Sequence[Candidate]) -> Ladder:
    """Chooses the ladder: as wide as scouting and one more rung fit the budget, then as long."""
    if len(candidates) < 2:
        return Ladder(rungs=(), first=tuple(candidates), planned_cost=Cost())
    step_cost = _average_step_cost(config, candidates)
    for width in range(len(candidates), 1, -1):
        if rungs := _rungs_of_width(config, step_cost, width):
            return Ladder(
                rungs=rungs,
                first=_first_candidates(config, candidates, width),
                planned_cost=ladder_cost(config, rungs, 0, step_cost),
                is_long=rungs[-1].step >= LONG_FROM * config.total_steps,
            )
    return Ladder(rungs=(), first=(), planned_cost=Cost())


def _rungs_of_width(config: RaceConfig, step_cost: Cost, width: int) -> tuple[PlannedRung, ...]:
    """The ladder of this width, empty if it does not fit: the longest whole one, or as many rungs of a scouting one."""
    scout, is_smallest = scout_steps(config.total_steps), width <= MIN_WIDTH
    whole = _longest_rungs(config, step_cost, config.budget * LADDER_SHARE, width)
    if whole and whole[-1].step >= LONG_FROM * config.total_steps:
        whole = _longest_rungs(config, step_cost, config.budget * LONG_LADDER_SHARE, width) or whole
    if whole and whole[0].step >= scout:
        return whole
    # A is_smallest budget is better spent on one rung than kept for later.
    share, ladder = 1.0 if is_smallest else LADDER_SHARE, _halving_rungs(config, width, scout)
    parts = [ladder[:count] for count in range(1 if is_smallest else 2, len(ladder) + 1)]
    scouting = max((part for part in parts if _fits(config, part, step_cost, share)), key=len, default=())
    return scouting or (_longest_rungs(config, step_cost, config.budget, width) if width < MIN_WIDTH else ())


def ladder_cost(config: RaceConfig, rungs: Sequence[PlannedRung], start: int, step_cost: Cost) -> Cost:
    """Cost of the rungs from index `start` on, each arm continuing from the rung before.

    Args:
        config: The race's.
        rungs: The ladder.
        start: Index of the first rung that counts.
        step_cost: One step of the average candidate.
    """
    total = Cost()
    for index in range(start, len(rungs)):
        before = rungs[index - 1].step if index else 0
        total += (step_cost * (rungs[index].step - before) + config.eval_cost) * rungs[index].num_layers
    return total


def middle_candidate(config: RaceConfig, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate nearest to the model's middle; of two, the higher."""
    return min(candidates, key=lambda c: (abs(np.mean(c.layers) - config.num_layers // 2), -np.mean(c.layers)))


def _average_step_cost(config: RaceConfig, candidates: Sequence[Candidate]) -> Cost:
    """A step of the average candidate; before a batch starts, it is held against what its own layers cost."""
    return sum((config.step_cost(candidate.layers) for candidate in candidates), Cost()) * (1 / len(candidates))


def _fits(config: RaceConfig, rungs: Sequence[PlannedRung], step_cost: Cost, share: float) -> bool:
    return ladder_cost(config, rungs, 0, step_cost).fits(config.budget * share)


def _halving_rungs(config: RaceConfig, width: int, steps: int) -> tuple[PlannedRung, ...]:
    rungs = [PlannedRung(step=steps, num_layers=width)]
    while rungs[-1].num_layers > NUM_FINALISTS and rungs[-1].step < config.total_steps:
        num_layers = max(NUM_FINALISTS, math.ceil(rungs[-1].num_layers / 2))
        rungs.append(PlannedRung(step=min(2 * rungs[-1].step, config.total_steps), num_layers=num_layers))
    return tuple(rungs)


def _longest_rungs(config: RaceConfig, step_cost: Cost, budget: Cost, width: int) -> tuple[PlannedRung, ...]:
    """The ladder with the longest first rung that fits; empty if none does."""

    def fits(steps: int) -> bool:
        rungs = _halving_rungs(config, width, steps)
        return ladder_cost(config, rungs, 0, step_cost).fits(budget)

    low, high = 0, config.total_steps
    while low < high:  # the ladder's cost grows with its first rung
        half = (low + high + 1) // 2
        low, high = (half, high) if fits(half) else (low, half - 1)
    return _halving_rungs(config, width, low) if low else ()


def _first_candidates(config: RaceConfig, candidates: Sequence[Candidate], width: int) -> tuple[Candidate, ...]:
    """The best predictions, and always `middle` and one random layer: what keeps a wrong prediction honest."""
    ranked = sorted(candidates, key=lambda c: (-c.predicted, [-index for index in c.layers]))
    if width >= len(ranked):
        return tuple(ranked)
    chosen = [ranked[0]]
    if middle_candidate(config, candidates) not in chosen:
        chosen.append(middle_candidate(config, candidates))
    others = [c for c in ranked if c not in chosen]
    control = others[np.random.default_rng([config.seed, len(candidates)]).integers(len(others))]
    if len(chosen) < width:
        chosen.append(control)
    chosen += [c for c in ranked if c not in chosen][: width - len(chosen)]
    return tuple(c for c in ranked if c in chosen)
