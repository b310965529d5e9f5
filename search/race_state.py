"""What has been run, what it cost and what is left. The race's only mutable record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from autolayer.core.arms import RungResult
from autolayer.core.costs import Cost
from autolayer.search.records import Candidate, RaceConfig, Run, Slot


class RaceState:
    """Finished and failed runs of one race, in the order in which the race asked for them.

    Args:
        config: The race's.
        candidates: What may win.
    """

    def __init__(self, config: RaceConfig, candidates: Sequence[Candidate]) -> None:
        self.config = config
        self.candidates = tuple(candidates)
        self.results: dict[Run, RungResult] = {}
        self.failures: dict[Run, str] = {}
        self._step_costs = {c.layers: config.step_cost(c.layers) for c in candidates}

    def add(self, batch: Iterable[Run], answers: Mapping[Run, RungResult | str]) -> None:
        """Enters a batch. An answer is the run's result, or the reason why it failed."""
        for run in batch:
            answer = answers[run]
            if isinstance(answer, str):
                self.failures[run] = answer
            else:
                self.results[run] = answer

    def without_budget(self) -> RaceState:
        """The same record under a budget that pays for everything."""
        everything = Cost(generated_tokens=math.inf, layer_tokens=math.inf)
        free = RaceState(replace(self.config, budget=everything), self.candidates)
        free.results, free.failures = self.results, self.failures
        return free

    def latest(self, slot: Slot) -> RungResult | None:
        """The slot's most advanced result."""
        found = [result for run, result in self.results.items() if run.slot == slot]
        return max(found, key=lambda result: result.arm.step, default=None)

    def slots(self, layers: tuple[int, ...]) -> list[Slot]:
        """The slots of `layers` that have a result, most advanced first, then in the order of the race."""
        found = dict.fromkeys(run.slot for run in self.results if run.slot.layers == layers)
        return sorted(found, key=lambda slot: -self.step(slot))

    def step(self, slot: Slot) -> int:
        """Optimizer steps that the slot has done; 0 if none of its runs finished."""
        latest = self.latest(slot)
        return latest.arm.step if latest else 0

    def has_failed(self, slot: Slot) -> bool:
        """True if a run of the slot raised; such a slot is not taken further."""
        return any(run.slot == slot for run in self.failures)

    def is_lost(self, layers: tuple[int, ...]) -> bool:
        """True if runs of `layers` failed and none finished: they cannot be chosen."""
        failed = any(run.slot.layers == layers for run in self.failures)
        return failed and not self.slots(layers)

    def planned_cost(self, runs: Iterable[Run]) -> Cost:
        """What the configuration says that these runs cost."""
        steps = (self._step_costs[run.slot.layers] * (run.to_step - run.from_step) for run in runs)
        return sum((step + self.config.eval_cost for step in steps), Cost())

    @property
    def spent(self) -> Cost:
        """What the runs cost; as planned where they failed or did not say."""
        priced, unpriced = self._with_cost
        return sum((result.cost for result in priced.values()), Cost()) + self.planned_cost([*unpriced, *self.failures])

    @property
    def _with_cost(self) -> tuple[dict[Run, RungResult], list[Run]]:
        """The finished runs that say what they cost, and those that do not."""
        priced = {run: result for run, result in self.results.items() if _has_cost(result.cost)}
        return priced, [run for run in self.results if run not in priced]

    def expected_cost(self, runs: Iterable[Run]) -> Cost:
        """What runs to come will cost: as planned, or more where finished runs cost more than planned.

        Completions grow during RL, so a plan made on the base model's can be too low.
        """
        priced, _ = self._with_cost
        planned = self.planned_cost(priced)
        actual = sum((result.cost for result in priced.values()), Cost())
        total = self.planned_cost(runs)
        return Cost(
            generated_tokens=total.generated_tokens * _overrun(planned.generated_tokens, actual.generated_tokens),
            layer_tokens=total.layer_tokens * _overrun(planned.layer_tokens, actual.layer_tokens),
        )

    def affords(self, runs: Sequence[Run], reserve: Cost | None = None) -> bool:
        """True if the runs, and then still `reserve`, fit what is left of the budget in both components."""
        wanted = self.spent + self.expected_cost(runs) + (reserve or Cost())
        # Sums of floats in another order differ in the last digits; a billionth of the budget is no overspending.
        return wanted.fits(self.config.budget * (1 + 1e-9))


def _has_cost(cost: Cost) -> bool:
    return cost.generated_tokens > 0 or cost.layer_tokens > 0


def _overrun(planned: float, actual: float) -> float:
    return max(1.0, actual / planned) if planned > 0 else 1.0
