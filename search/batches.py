"""Chooses the batches of a race: the rungs of the ladder, then what the budget still pays for. Pure functions.

All runs of a batch end at the same step. After the ladder, the finalists get longer runs, fresh seeds and further
learning rates.
"""

from collections.abc import Sequence

from autolayer.core.costs import Cost
from autolayer.search.ladder import NUM_FINALISTS, Ladder, ladder_cost, plan_ladder
from autolayer.search.posterior import Posterior
from autolayer.search.race_state import RaceState
from autolayer.search.records import RATE_STEPS, Candidate, RaceConfig, Run, Slot

MIN_RATE_SHARE = 0.04
"""A second learning rate is tried from this share of the full run on. Before, drift and noise hide its effect."""
MAX_SEEDS = 3  # per finalist
MIN_LENGTHENING = 1.25
"""Minimum ratio of the steps of a last rung that the budget shortens to the steps of the rung before it."""


def first_batch(config: RaceConfig, candidates: Sequence[Candidate]) -> tuple[Run, ...]:
    """Returns the runs of the first rung; empty if the budget does not pay for two."""
    ladder = plan_ladder(config, candidates)
    scouts = [
        Run(slot=Slot(layers=c.layers, seed=config.seed), from_step=0, to_step=ladder.rungs[0].step)
        for c in ladder.first
        if ladder.rungs
    ]
    batch = _affordable(RaceState(config, candidates), scouts)  # the ladder is planned with the average cost
    return batch if len(batch) > 1 else ()


def next_batch(state: RaceState, ladder: Ladder, posterior: Posterior) -> tuple[Run, ...]:
    """Returns the next rung or, after the last one, runs of the finalists; empty if no run fits the budget."""
    step = max(run.to_step for run in state.results)
    rung = sum(rung.step <= step for rung in ladder.rungs)
    able = [index for index in posterior.ranked if _best_slot(state, posterior, index)]
    if rung < len(ladder.rungs):
        target = ladder.rungs[rung]
        batch = _affordable(state, _continue(state, posterior, able[: target.num_layers], target.step))
        if len(batch) >= 2:
            return batch + _second_rates(state, ladder, posterior, rung, batch)
    return _final_batch(state, posterior, able[:NUM_FINALISTS], step) if len(able) > 1 else ()


def _final_batch(state: RaceState, posterior: Posterior, finalists: Sequence[int], step: int) -> tuple[Run, ...]:
    """Returns the first of these batches that the budget pays for.

    1. The finalists at twice the steps, if a fresh seed of each remains affordable afterwards.
    2. A fresh seed of each finalist, if there is none yet or the finalists have done all steps.
    3. The finalists at as many more steps as possible, at least `MIN_LENGTHENING` times the steps so far.
    4. A further learning rate for each finalist.
    """
    config = state.config
    double = min(2 * step, config.total_steps)
    has_fresh_seed = any(run.slot.seed != config.seed for run in (*state.results, *state.failures))
    reserve = Cost() if has_fresh_seed else state.expected_cost(_fresh_seeds(state, posterior, finalists, double))
    longer = _continue(state, posterior, finalists, double)
    if double > step and state.affords(longer, reserve):
        return tuple(longer)
    fresh = _fresh_seeds(state, posterior, finalists, step)
    if fresh and (not has_fresh_seed or double == step) and state.affords(fresh):
        return tuple(fresh)
    for to_step in range(double, step, -1):
        longer = _continue(state, posterior, finalists, to_step)
        if to_step >= MIN_LENGTHENING * step and state.affords(longer):
            return tuple(longer)
    return _affordable(state, [run for index in finalists for run in _fresh_rate(state, posterior, index, step)])


def _second_rates(
    state: RaceState, ladder: Ladder, posterior: Posterior, rung: int, batch: tuple[Run, ...]
) -> tuple[Run, ...]:
    """Returns runs at a further learning rate for the better half of a rung, best first.

    They leave enough for the rungs above and, on a long ladder, for fresh seeds of the finalists.
    """
    unit = Cost(
        generated_tokens=max(
            state.planned_cost([run]).generated_tokens / (run.to_step - run.from_step) for run in batch
        ),
        layer_tokens=max(state.planned_cost([run]).layer_tokens / (run.to_step - run.from_step) for run in batch),
    )
    reserve = ladder_cost(state.config, ladder.rungs, rung + 1, unit)
    if ladder.is_long:
        last = ladder.rungs[-1].step
        reserve = reserve + state.expected_cost(_fresh_seeds(state, posterior, posterior.ranked[:NUM_FINALISTS], last))
    chosen: list[Run] = []
    for index in posterior.ranked[: max(NUM_FINALISTS, ladder.rungs[rung].num_layers // 2)]:
        for run in _fresh_rate(state, posterior, index, ladder.rungs[rung].step):
            if state.affords([*batch, *chosen, run], reserve):
                chosen.append(run)
    return tuple(chosen)


def _continue(state: RaceState, posterior: Posterior, indices: Sequence[int], to_step: int) -> list[Run]:
    """Returns runs that continue each candidate's best arm to a rung; an unmeasured candidate starts at step 0."""
    slots = [slot for index in indices if (slot := _best_slot(state, posterior, index))]
    return [Run(slot=slot, from_step=state.step(slot), to_step=to_step) for slot in slots]


def _best_slot(state: RaceState, posterior: Posterior, index: int) -> Slot | None:
    """Returns the candidate's most advanced arm, at its best rate if possible; None if all its arms failed."""
    layers = posterior.candidates[index].layers
    slots = state.slots(layers) or [Slot(layers=layers, seed=state.config.seed)]
    sound = [slot for slot in slots if not state.has_failed(slot)]
    return min(sound, key=lambda slot: slot.rate_index != posterior.rate_index_C[index], default=None)


def _fresh_rate(state: RaceState, posterior: Posterior, index: int, to_step: int) -> list[Run]:
    """Returns a run at the candidate's next untried learning rate, in a list that is empty if there is none."""
    layers = posterior.candidates[index].layers
    tried = {run.slot.rate_index for run in (*state.results, *state.failures) if run.slot.layers == layers}
    too_early = to_step < MIN_RATE_SHARE * state.config.total_steps
    if state.config.fixed_rate or too_early or not tried or len(tried) >= len(RATE_STEPS):
        return []
    slot = Slot(layers=layers, rate_index=max(tried) + 1, seed=state.config.seed)
    return [Run(slot=slot, from_step=0, to_step=to_step)]


def _fresh_seeds(state: RaceState, posterior: Posterior, indices: Sequence[int], to_step: int) -> list[Run]:
    """Returns one run per candidate at its best rate, all with the same unused seed so that they are paired."""
    used = {run.slot.seed for run in (*state.results, *state.failures)}
    if len(used) >= MAX_SEEDS:
        return []
    slots = [slot for index in indices if (slot := _best_slot(state, posterior, index))]
    fresh = [Slot(layers=slot.layers, rate_index=slot.rate_index, seed=max(used) + 1) for slot in slots]
    return [Run(slot=slot, from_step=0, to_step=to_step) for slot in fresh]


def _affordable(state: RaceState, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Returns the runs that fit the remaining budget, considered in the given order."""
    chosen: list[Run] = []
    for run in runs:
        if state.affords([*chosen, run]):
            chosen.append(run)
    return tuple(chosen)
