"""Races candidates by batches of short runs until one is clearly best. It decides only; `worker` carries the runs out.

The schedule is synchronous successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) with resume: the arms of
a rung are compared with each other, and the better half is trained to twice the steps (`batches`). Arms are ranked by
the posterior of their final contribution (`posterior`), not by their score at the rung.

A batch depends only on the complete batches before it and not on the order in which their runs finish, so every process
decides the same from the same records, and a process that crashes resumes from them.
"""

from collections.abc import Mapping, Sequence

from autolayer.core.arms import RungResult
from autolayer.core.errors import SearchError
from autolayer.search.batches import first_batch, next_batch
from autolayer.search.evidence import gather_evidence
from autolayer.search.ladder import plan_ladder
from autolayer.search.outcome import conclude, settled_verdict
from autolayer.search.posterior import Posterior, infer
from autolayer.search.race_state import RaceState
from autolayer.search.records import Candidate, RaceConfig, RaceOutcome, Run

Answer = RungResult | str
"""A run's result, or the reason why it failed."""


class Race:
    """A race, which moves on as the answers to its runs come in."""

    def __init__(
        self, config: RaceConfig, candidates: Sequence[Candidate], base_select_rewards_I: Sequence[float]
    ) -> None:
        self._base_I = base_select_rewards_I
        self._state = RaceState(config, candidates)
        self._ladder = plan_ladder(config, candidates)
        self._batch = first_batch(config, candidates)
        self._outcome = self._conclude(current_posterior(self._state, base_select_rewards_I))

    def due(self, answers: Mapping[Run, Answer]) -> tuple[Run, ...] | RaceOutcome:
        """Returns the runs of the batch that have no answer yet, or the outcome. `answers` holds all answers so far."""
        while not self._outcome and all(run in answers for run in self._batch):
            self._state.add(self._batch, answers)
            if not self._state.results:
                reason = next(iter(self._state.failures.values()))
                raise SearchError(f"every short run failed, so no layer can be chosen. First failure: {reason}")
            posterior = current_posterior(self._state, self._base_I)
            self._batch = next_batch(self._state, self._ladder, posterior)
            self._outcome = self._conclude(posterior)
        return self._outcome or tuple(run for run in self._batch if run not in answers)

    @property
    def leader(self) -> tuple[int, ...]:
        """The candidate with the highest expected contribution, after the last whole batch."""
        return self._posterior.candidates[self._posterior.ranked[0]].layers

    @property
    def leader_probability(self) -> float:
        """Probability that the leader is the best candidate."""
        return float(self._posterior.probability_best_C[self._posterior.ranked[0]])

    def _conclude(self, posterior: Posterior) -> RaceOutcome | None:
        self._posterior = posterior
        verdict = settled_verdict(self._state.config, posterior, measured=bool(self._state.results))
        if not verdict and self._batch:
            return None
        return conclude(self._state, posterior, self._base_I, verdict, self._stop_reason(posterior))

    def _stop_reason(self, posterior: Posterior) -> str:
        if not self._state.results:
            return "the budget pays for no race, so the prediction decides alone"
        if next_batch(self._state.without_budget(), self._ladder, posterior):
            return "the next runs would cost more than is left of the budget"
        return "there is no further run to make, the best layers were trained to the end at every rate and seed"


def current_posterior(state: RaceState, base_select_rewards_I: Sequence[float]) -> Posterior:
    """Returns the posterior of the candidates' contributions, given all finished runs."""
    eligible = [not state.is_lost(candidate.layers) for candidate in state.candidates]
    return infer(state.config, state.candidates, gather_evidence(state.results, base_select_rewards_I), eligible)
