"""Keeps the finished runs of a race and computes their cost. The only mutable state of `race`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from autolayer.core.arms import RungResult
from autolayer.core.costs import Cost
from autolayer.search.records import Candidate, RaceConfig, Run, Slot


class RaceState:
    """Holds the finished and failed runs of one race, in the order in which the race yielded them."""

    def __init__(self, config: RaceConfig, candidates: Sequence[Candidate]) -> None:
        self.config = config
        self.candidates = tuple(candidates)
        self.results: dict[Run, RungResult] = {}
        self.failures: dict[Run, str] = {}
        self._step_costs = {c.layers: config.step_cost(c.layers) for c in candidates}

    def add(self, batch: Iterable[Run], answers: Mapping[Run, RungResult | str]) -> None:
        """Adds the runs of a batch with their answers: a result, or the reason why the run failed."""
        for run in batch:
            answer = answers[run]
            if isinstance(answer, str):
                self.failures[run] = answer
            else:
                self.results[run] = answer

    def without_budget(self) -> RaceState:
        """Returns a state with the same runs and an infinite budget."""
        everything = Cost(generated_tokens=math.inf, layer_tokens=math.inf)
        free = RaceState(replace(self.config, budget=everything), self.candidates)
        free.results, free.failures = self.results, self.failures
        return free

    def latest(self, slot: Slot) -> RungResult | None:
        """Returns the slot's result with the most steps, or None."""
        found = [result for run, result in self.results.items() if run.slot == slot]
        return max(found, key=lambda result: result.arm.step, default=None)

    def slots(self, layers: tuple[int, ...]) -> list[Slot]:
        """Returns the slots of `layers` that have a result, most steps first, ties in the order of the race."""
        found = dict.fromkeys(run.slot for run in self.results if run.slot.layers == layers)
        return sorted(found, key=lambda slot: -self.step(slot))

    def step(self, slot: Slot) -> int:
        """Returns the optimizer steps that the slot has done; 0 if none of its runs finished."""
        latest = self.latest(slot)
        return latest.arm.step if latest else 0

    def has_failed(self, slot: Slot) -> bool:
        """Returns True if a run of the slot failed. Such a slot is not continued."""
        return any(run.slot == slot for run in self.failures)

    def is_lost(self, layers: tuple[int, ...]) -> bool:
        """Returns True if runs of `layers` failed and none finished, so that the layers cannot be chosen."""
        failed = any(run.slot.layers == layers for run in self.failures)
        return failed and not self.slots(layers)

    def planned_cost(self, runs: Iterable[Run]) -> Cost:
        """Returns the cost of the runs by the configuration's cost per step and per evaluation."""
        steps = (self._step_costs[run.slot.layers] * (run.to_step - run.from_step) for run in runs)
        return sum((step + self.config.eval_cost for step in steps), Cost())

    @property
    def spent(self) -> Cost:
        """Cost of all runs: as measured, or as planned where a run failed."""
        return self._measured_cost + self.planned_cost(self.failures)

    @property
    def _measured_cost(self) -> Cost:
        return sum((result.cost for result in self.results.values()), Cost())

    @property
    def _lost_time(self) -> Cost:
        """Work that the race does in the time by which the stages before it were slower than the race."""
        earlier, race = self.config.earlier, self._measured_cost
        if not race.seconds:
            return Cost()
        return Cost(layer_tokens=max(0.0, earlier.seconds * race.layer_tokens / race.seconds - earlier.layer_tokens))

    def expected_cost(self, runs: Iterable[Run]) -> Cost:
        """Returns the planned cost of future runs, scaled up if finished runs cost more than planned."""
        # Completions get longer during RL, so a plan made on those of the base model can be too low.
        planned, actual, total = self.planned_cost(self.results), self._measured_cost, self.planned_cost(runs)
        return Cost(
            generated_tokens=total.generated_tokens * _overrun(planned.generated_tokens, actual.generated_tokens),
            layer_tokens=total.layer_tokens * _overrun(planned.layer_tokens, actual.layer_tokens),
        )

    def affords(self, runs: Sequence[Run], reserve: Cost | None = None) -> bool:
        """Returns True if the runs and `reserve` together fit the remaining budget in both components."""
        wanted = self.spent + self._lost_time + self.expected_cost(runs) + (reserve or Cost())
        # Sums of floats in another order differ in the last digits, so a billionth of the budget is tolerated.
        return wanted.fits(self.config.budget * (1 + 1e-9))


def _overrun(planned: float, actual: float) -> float:
    return max(1.0, actual / planned) if planned > 0 else 1.0
