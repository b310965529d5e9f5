"""Plans the ladder of rungs that fits a budget: how many layers race, and for how many steps.

The ladder is that of successive halving (arXiv 1502.07943): every rung has twice the steps of the one before and half
of its layers, and an arm that is promoted continues from its checkpoint. On a small model the prediction often misses
the best layer (examples/RESULTS.md), so a larger budget first adds layers and then steps; on a pretrained one it adds
steps first.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.core.budget import MIN_WIDTH, scout_steps
from autolayer.core.costs import Cost
from autolayer.search.records import Candidate, RaceConfig

LADDER_SHARE, LONG_LADDER_SHARE = 0.9, 0.6
"""Share of the budget that an ordinary and a long ladder may use. The rest pays for second learning rates and fresh
seeds of the finalists, which are worth more than longer runs only at the end of a long ladder."""
LONG_FROM = 0.5
"""Share of the full run from which a ladder counts as long. The error of early values (`DRIFT` and `EARLY` in
`curve_model`) is then no larger than the joint effect of learning rate and seed (`RATE_SD` and `SEED_SD` there)."""
NUM_FINALISTS = 2  # arms of the last rung
PRETRAINED_FIRST = 1 / 16
"""Smallest share of the full run that the first rung of a pretrained model has, unless only `MIN_WIDTH` layers race.
Its prediction is good, so fewer and longer runs find a better layer (examples/realbench/race_replay.py)."""


@dataclass(frozen=True, kw_only=True)
class PlannedRung:
    """A step at which `num_layers` arms are compared with each other."""

    step: int
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The planned rungs. A race may stop earlier, and what is left of the budget goes to the finalists."""

    rungs: tuple[PlannedRung, ...]
    """Shortest first; empty if the budget does not pay for comparing two layers."""
    first: tuple[Candidate, ...]
    """The candidates of the first rung, best prediction first."""
    is_long: bool = False
    """True if a part of the budget is reserved for fresh seeds of the finalists."""


def plan_ladder(config: RaceConfig, candidates: Sequence[Candidate]) -> Ladder:
    """Chooses the widest ladder of which enough rungs fit the budget, and then the longest of this width."""
    if len(candidates) < 2:
        return Ladder(rungs=(), first=tuple(candidates))
    step_cost = average_step_cost(config, candidates)
    for width in range(len(candidates), 1, -1):
        rungs = _rungs_of_width(config, step_cost, width)
        if rungs and (width <= MIN_WIDTH or rungs[0].step >= _min_first(config)):
            return Ladder(
                rungs=rungs,
                first=_first_candidates(config, candidates, width),
                is_long=rungs[-1].step >= LONG_FROM * config.total_steps,
            )
    return Ladder(rungs=(), first=())


def _rungs_of_width(config: RaceConfig, step_cost: Cost, width: int) -> tuple[PlannedRung, ...]:
    """Returns the longest complete ladder of this width if its first rung has at least `scout_steps`.

    Otherwise the first rung has exactly these steps, and the ladder ends where the budget does; it may be empty.
    """
    scout, is_smallest = scout_steps(config.total_steps), width <= MIN_WIDTH
    whole = _longest_rungs(config, step_cost, config.budget * LADDER_SHARE, width)
    if whole and whole[-1].step >= LONG_FROM * config.total_steps:
        whole = _longest_rungs(config, step_cost, config.budget * LONG_LADDER_SHARE, width) or whole
    if whole and whole[0].step >= scout:
        return whole
    # With the fewest arms, one rung may use the whole budget; wider ladders need two rungs.
    share, ladder = 1.0 if is_smallest else LADDER_SHARE, _halving_rungs(config, width, scout)
    parts = [ladder[:count] for count in range(1 if is_smallest else 2, len(ladder) + 1)]
    affordable = [part for part in parts if ladder_cost(config, part, 0, step_cost).fits(config.budget * share)]
    scouting = max(affordable, key=len, default=())
    return scouting or (_longest_rungs(config, step_cost, config.budget, width) if width < MIN_WIDTH else ())


def _min_first(config: RaceConfig) -> float:
    return PRETRAINED_FIRST * config.total_steps if config.is_pretrained else 0


def ladder_cost(config: RaceConfig, rungs: Sequence[PlannedRung], start: int, step_cost: Cost) -> Cost:
    """Returns the cost of the rungs from index `start` on, each arm continuing from the rung before."""
    total = Cost()
    for index in range(start, len(rungs)):
        before = rungs[index - 1].step if index else 0
        total += (step_cost * (rungs[index].step - before) + config.eval_cost) * rungs[index].num_layers
    return total


def middle_candidate(config: RaceConfig, candidates: Sequence[Candidate]) -> Candidate:
    """Returns the candidate nearest to the model's middle; of two, the higher."""
    return min(candidates, key=lambda c: (abs(np.mean(c.layers) - config.num_layers // 2), -np.mean(c.layers)))


def average_step_cost(config: RaceConfig, candidates: Sequence[Candidate]) -> Cost:
    """Returns the mean cost of a training step over the candidates."""
    return sum((config.step_cost(candidate.layers) for candidate in candidates), Cost()) * (1 / len(candidates))


def _halving_rungs(config: RaceConfig, width: int, steps: int) -> tuple[PlannedRung, ...]:
    rungs = [PlannedRung(step=steps, num_layers=width)]
    while rungs[-1].num_layers > NUM_FINALISTS and rungs[-1].step < config.total_steps:
        num_layers = max(NUM_FINALISTS, math.ceil(rungs[-1].num_layers / 2))
        rungs.append(PlannedRung(step=min(2 * rungs[-1].step, config.total_steps), num_layers=num_layers))
    return tuple(rungs)


def _longest_rungs(config: RaceConfig, step_cost: Cost, budget: Cost, width: int) -> tuple[PlannedRung, ...]:
    """Returns the complete ladder with the longest first rung that fits; empty if none does."""

    def is_too_long(steps: int) -> bool:
        return not ladder_cost(config, _halving_rungs(config, width, steps), 0, step_cost).fits(budget)

    steps = bisect.bisect_left(range(1, config.total_steps + 1), True, key=is_too_long)
    return _halving_rungs(config, width, steps) if steps else ()


def _first_candidates(config: RaceConfig, candidates: Sequence[Candidate], width: int) -> tuple[Candidate, ...]:
    """Returns the best predictions, always with the middle and a random layer in case the prediction is wrong."""
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
