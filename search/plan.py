"""How wide and how long: the ladder of rungs that fits a budget.

Synchronous halving: every rung has twice the steps of the one before and half of its layers, and an arm that goes
up a rung continues from its checkpoint, so each rung after the first costs about half of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.costs import Cost
from autolayer.search.records import Candidate, RaceConfig

LADDER_SHARE, LONG_LADDER_SHARE = 0.9, 0.6
"""Share of the budget for the ladder. The rest pays for second learning rates and fresh seeds of the finalists, which
are worth more than longer runs only at the end of a long ladder."""
LONG = 0.5
"""Share of the full run from which a ladder is long: what early values still mislead by (`model.DRIFT`, `model.EARLY`)
is then no more than what a learning rate and a seed do together (`model.RATE_SD`, `model.SEED_SD`)."""
WIDTH = 0.4
"""First rung: this many layers times the root of the steps that the budget buys, so that twice the money goes in equal
parts into more layers and longer runs. Of .2 to 1 in race_simulation.py, .35 to .5 lost least over all priors."""
MIN_WIDTH = 4
"""The two best predictions, `middle` and a random layer."""
NUM_FINALISTS = 2


@dataclass(frozen=True, kw_only=True)
class Rung:
    """All arms at this step are compared with each other."""

    step: int
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the race starts with. It may do less (it stops early) or more (what is left goes to the finalists)."""

    rungs: tuple[Rung, ...]
    """Empty if the budget does not pay for comparing two layers."""
    first: tuple[Candidate, ...]
    """The candidates of the first rung, best prediction first."""
    planned_cost: Cost
    """The ladder's, for the dearest candidates."""
    is_long: bool = False
    """True if the budget keeps a part back for fresh seeds of the finalists."""


def plan(config: RaceConfig, candidates: Sequence[Candidate]) -> Plan:
    """Chooses the ladder: as long as the budget allows for a width that grows with the root of the budget."""
    step_cost = _dearest(config, candidates)
    if len(candidates) < 2:
        return Plan(rungs=(), first=tuple(candidates), planned_cost=Cost())
    wanted = round(WIDTH * math.sqrt(_num_affordable(step_cost, config.budget)))
    for width in range(min(len(candidates), max(wanted, MIN_WIDTH)), 1, -1):
        # A very small budget is better spent on one whole ladder than kept for later.
        ladders = [_longest(config, step_cost, config.budget * share, width) for share in (LADDER_SHARE, 1.0)]
        rungs = next((rungs for rungs in ladders if rungs), ())
        is_long = bool(rungs) and rungs[-1].step >= LONG * config.total_steps
        if is_long:
            rungs = _longest(config, step_cost, config.budget * LONG_LADDER_SHARE, width) or rungs
        if rungs:
            cost = ladder_cost(rungs, 0, step_cost, config.eval_cost)
            return Plan(rungs=rungs, first=_first(config, candidates, width), planned_cost=cost, is_long=is_long)
    return Plan(rungs=(), first=(), planned_cost=Cost())


def ladder_cost(rungs: Sequence[Rung], start: int, step_cost: Cost, eval_cost: Cost) -> Cost:
    """Cost of the rungs from index `start` on, each arm continuing from the rung before."""
    total = Cost()
    for index in range(start, len(rungs)):
        before = rungs[index - 1].step if index else 0
        total = total + (step_cost * (rungs[index].step - before) + eval_cost) * rungs[index].num_layers
    return total


def middle(config: RaceConfig, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate nearest to the model's middle; of two, the higher."""
    return min(candidates, key=lambda c: (abs(np.mean(c.layers) - config.num_layers // 2), -np.mean(c.layers)))


def _dearest(config: RaceConfig, candidates: Sequence[Candidate]) -> Cost:
    costs = [config.step_cost(candidate.layers) for candidate in candidates]
    return Cost(
        generated_tokens=max((cost.generated_tokens for cost in costs), default=0.0),
        layer_tokens=max((cost.layer_tokens for cost in costs), default=0.0),
    )


def _num_affordable(unit: Cost, budget: Cost) -> float:
    pairs = ((unit.generated_tokens, budget.generated_tokens), (unit.layer_tokens, budget.layer_tokens))
    return max(0.0, min((have / need for need, have in pairs if need > 0), default=1e6))


def _ladder(config: RaceConfig, width: int, steps: int) -> tuple[Rung, ...]:
    rungs = [Rung(step=steps, num_layers=width)]
    while rungs[-1].num_layers > NUM_FINALISTS and rungs[-1].step < config.total_steps:
        num_layers = max(NUM_FINALISTS, math.ceil(rungs[-1].num_layers / 2))
        rungs.append(Rung(step=min(2 * rungs[-1].step, config.total_steps), num_layers=num_layers))
    return tuple(rungs)


def _longest(config: RaceConfig, step_cost: Cost, budget: Cost, width: int) -> tuple[Rung, ...]:
    """The ladder with the longest first rung that fits; empty if none does."""

    def fits(steps: int) -> bool:
        rungs = _ladder(config, width, steps)
        return ladder_cost(rungs, 0, step_cost, config.eval_cost).fits(budget)

    low, high = 0, config.total_steps
    while low < high:  # the ladder's cost grows with its first rung
        half = (low + high + 1) // 2
        low, high = (half, high) if fits(half) else (low, half - 1)
    return _ladder(config, width, low) if low else ()


def _first(config: RaceConfig, candidates: Sequence[Candidate], width: int) -> tuple[Candidate, ...]:
    """The best predictions, and always `middle` and one random layer: what keeps a wrong prediction honest."""
    ranked = sorted(candidates, key=lambda c: (-c.predicted, [-index for index in c.layers]))
    if width >= len(ranked):
        return tuple(ranked)
    chosen = [ranked[0]]
    if middle(config, candidates) not in chosen:
        chosen.append(middle(config, candidates))
    others = [c for c in ranked if c not in chosen]
    control = others[np.random.default_rng([config.seed, len(candidates)]).integers(len(others))]
    if len(chosen) < width:
        chosen.append(control)
    chosen += [c for c in ranked if c not in chosen][: width - len(chosen)]
    return tuple(c for c in ranked if c in chosen)
