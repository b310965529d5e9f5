"""The race: which short runs come next, and when it is over. Pure decisions; `study` carries them out.

Synchronous halving with resume. A race is a generator that yields batches of runs and receives what became of them,
so the whole schedule reads top to bottom in `race`. Each batch depends only on the complete batches before it, never
on the order in which the runs of a batch finish: the same records give the same decision in every process, and a
crash between any two lines loses nothing (`RaceReplay` replays the records).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from autolayer.core.arms import RungResult
from autolayer.core.costs import Cost
from autolayer.search.evidence import gather_evidence
from autolayer.search.ladder import NUM_FINALISTS, Ladder, ladder_cost, plan_ladder
from autolayer.search.learning_rates import RATE_STEPS
from autolayer.search.outcome import conclude, settled_verdict
from autolayer.search.posterior import Posterior, infer
from autolayer.search.race_state import RaceState
from autolayer.search.records import Candidate, RaceConfig, RaceOutcome, Run, SearchError, Slot

MIN_RATE_SHARE = 0.04
"""Share of the full run before which a rate's effect is lost in drift and noise."""
MAX_SEEDS = 3
"""Training seeds per finalist."""
MIN_LENGTHENING = 1.25
"""A last, shorter rung must be this much longer than the one before to tell anything new."""

Answer = RungResult | str
"""What became of a run: its result, or the reason why it failed."""
Race = Generator[tuple[Run, ...], Mapping[Run, Answer], RaceOutcome]


def race(config: RaceConfig, candidates: Sequence[Candidate], base_select_rewards_I: Sequence[float]) -> Race:
    """Yields batches of runs; wants an answer for every run of a batch; returns the outcome.

    Raises:
        SearchError: Every run of the first batch failed.
    """
    state = RaceState(config, candidates)
    ladder, batch = plan_ladder(config, candidates), first_batch(config, candidates)
    while True:
        posterior = current_posterior(state, base_select_rewards_I)
        verdict = settled_verdict(config, posterior, measured=bool(state.results))
        if verdict or not batch:
            return conclude(state, posterior, base_select_rewards_I, verdict, _stop_reason(state, ladder, posterior))
        state.add(batch, (yield batch))
        if not state.results:
            reason = next(iter(state.failures.values()))
            raise SearchError(f"every short run failed, so no layer can be chosen; the first one said: {reason}")
        batch = next_batch(state, ladder, current_posterior(state, base_select_rewards_I))


def first_batch(config: RaceConfig, candidates: Sequence[Candidate]) -> tuple[Run, ...]:
    """The runs of the first rung, known before the race; empty if the budget does not pay for comparing two."""
    ladder = plan_ladder(config, candidates)
    scouts = [
        Run(slot=Slot(layers=c.layers, seed=config.seed), from_step=0, to_step=ladder.rungs[0].step)
        for c in ladder.first
        if ladder.rungs
    ]
    batch = _affordable(RaceState(config, candidates), scouts)  # the plan is made for average layers
    return batch if len(batch) > 1 else ()


class RaceReplay:
    """A race that follows a record kept elsewhere. The record only grows; asking twice changes nothing."""

    def __init__(
        self, config: RaceConfig, candidates: Sequence[Candidate], base_select_rewards_I: Sequence[float]
    ) -> None:
        self._race = race(config, candidates, base_select_rewards_I)
        self._batch: tuple[Run, ...] | None = None
        self._outcome: RaceOutcome | None = None

    def due(self, answers: Mapping[Run, Answer]) -> tuple[Run, ...] | RaceOutcome:
        """The runs that the race is waiting for, given all answers so far, or its outcome."""
        try:
            if self._batch is None:
                self._batch = next(self._race)
            while not self._outcome and all(run in answers for run in self._batch):
                self._batch = self._race.send({run: answers[run] for run in self._batch})
        except StopIteration as stop:
            self._outcome = stop.value
        return self._outcome or tuple(run for run in self._batch or () if run not in answers)


def current_posterior(state: RaceState, base_select_rewards_I: Sequence[float]) -> Posterior:
    """What everything in the state says about the candidates."""
    eligible = [not state.is_lost(candidate.layers) for candidate in state.candidates]
    return infer(state.config, state.candidates, gather_evidence(state.results, base_select_rewards_I), eligible)


def next_batch(state: RaceState, ladder: Ladder, posterior: Posterior) -> tuple[Run, ...]:
    """The next rung of the ladder, or what the finalists can still use; empty if nothing fits the budget."""
    step = max(run.to_step for run in state.results)
    rung = sum(rung.step <= step for rung in ladder.rungs)
    able = [index for index in posterior.ranked if _best_slot(state, posterior, index)]
    if rung < len(ladder.rungs):
        target = ladder.rungs[rung]
        batch = _affordable(state, _continue(state, posterior, able[: target.num_layers], target.step))
        if len(batch) >= 2:
            return batch + _second_rates(state, ladder, posterior, rung, batch)
    return _final_batch(state, posterior, able[:NUM_FINALISTS], step) if len(able) > 1 else ()


def _stop_reason(state: RaceState, ladder: Ladder, posterior: Posterior) -> str:
    """What ends a race in which nothing is settled."""
    if not state.results:
        return "the budget pays for no race, so the prediction decides alone"
    if next_batch(state.without_budget(), ladder, posterior):
        return "the next runs would cost more than is left of the budget"
    return "there is no further run to make, the best layers were trained to the end at every rate and seed"


def _final_batch(state: RaceState, posterior: Posterior, finalists: Sequence[int], step: int) -> tuple[Run, ...]:
    """Longer runs of the finalists as long as fresh seeds stay affordable, then those, then whatever still fits."""
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
    """Another learning rate for the survivors, best first, as far as what is planned for later stays affordable."""
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
    """Takes candidates' best-rate arms to a rung; a candidate that was not measured yet joins from step 0."""
    slots = [slot for index in indices if (slot := _best_slot(state, posterior, index))]
    return [Run(slot=slot, from_step=state.step(slot), to_step=to_step) for slot in slots]


def _best_slot(state: RaceState, posterior: Posterior, index: int) -> Slot | None:
    """The candidate's most advanced arm at its best rate, else at any; None if a failure left it none."""
    layers = posterior.candidates[index].layers
    slots = state.slots(layers) or [Slot(layers=layers, seed=state.config.seed)]
    sound = [slot for slot in slots if not state.has_failed(slot)]
    return min(sound, key=lambda slot: slot.rate_index != posterior.rate_index_C[index], default=None)


def _fresh_rate(state: RaceState, posterior: Posterior, index: int, to_step: int) -> list[Run]:
    """Returns a run of the next learning rate that was not tried, if there may be one."""
    layers = posterior.candidates[index].layers
    tried = {run.slot.rate_index for run in (*state.results, *state.failures) if run.slot.layers == layers}
    too_early = to_step < MIN_RATE_SHARE * state.config.total_steps
    if state.config.fixed_rate or too_early or not tried or len(tried) >= len(RATE_STEPS):
        return []
    slot = Slot(layers=layers, rate_index=max(tried) + 1, seed=state.config.seed)
    return [Run(slot=slot, from_step=0, to_step=to_step)]


def _fresh_seeds(state: RaceState, posterior: Posterior, indices: Sequence[int], to_step: int) -> list[Run]:
    """One run per candidate at its best rate with the next unused seed; the same one for all, so that they pair."""
    used = {run.slot.seed for run in (*state.results, *state.failures)}
    if len(used) >= MAX_SEEDS:
        return []
    slots = [slot for index in indices if (slot := _best_slot(state, posterior, index))]
    fresh = [Slot(layers=slot.layers, rate_index=slot.rate_index, seed=max(used) + 1) for slot in slots]
    return [Run(slot=slot, from_step=0, to_step=to_step) for slot in fresh]


def _affordable(state: RaceState, runs: Sequence[Run]) -> tuple[Run, ...]:
    """As many runs as fit what is left of the budget, in order of preference."""
    chosen: list[Run] = []
    for run in runs:
        if state.affords([*chosen, run]):
            chosen.append(run)
    return tuple(chosen)
