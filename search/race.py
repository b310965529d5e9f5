"""Races candidates by batches of short runs until one is clearly best. Pure functions; `worker` carries the runs out.

The schedule is synchronous successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) with resume: the arms of
a rung are compared with each other, and the better half is trained to twice the steps (`batches`). Arms are ranked by
the posterior of their final contribution (`posterior`), not by their score at the rung.

`race` is a generator: it yields a batch of runs and receives their answers. A batch depends only on the complete
batches before it and not on the order in which their runs finish, so every process decides the same from the same
records, and a process that crashes resumes from them (`RaceReplay`).
"""

from collections.abc import Generator, Mapping, Sequence

from autolayer.core.arms import RungResult
from autolayer.search.batches import first_batch, next_batch
from autolayer.search.evidence import gather_evidence
from autolayer.search.ladder import Ladder, plan_ladder
from autolayer.search.outcome import conclude, settled_verdict
from autolayer.search.posterior import Posterior, infer
from autolayer.search.race_state import RaceState
from autolayer.search.records import Candidate, RaceConfig, RaceOutcome, Run, SearchError

Answer = RungResult | str
"""A run's result, or the reason why it failed."""
Race = Generator[tuple[Run, ...], Mapping[Run, Answer], RaceOutcome]


def race(config: RaceConfig, candidates: Sequence[Candidate], base_select_rewards_I: Sequence[float]) -> Race:
    """Yields batches of runs, receives an answer for every run of a batch, and returns the outcome.

    Args:
        config: Settings of the race.
        candidates: Layer sets that may win, with their predictions.
        base_select_rewards_I: Reward of the base model per `select` item.

    Returns:
        A generator. `send` it a mapping from each run of the last batch to its answer.

    Raises:
        SearchError: Every run of the first batch failed.
    """
    state = RaceState(config, candidates)
    ladder, batch = plan_ladder(config, candidates), first_batch(config, candidates)
    posterior = current_posterior(state, base_select_rewards_I)
    while True:
        verdict = settled_verdict(config, posterior, measured=bool(state.results))
        if verdict or not batch:
            return conclude(state, posterior, base_select_rewards_I, verdict, _stop_reason(state, ladder, posterior))
        state.add(batch, (yield batch))
        if not state.results:
            reason = next(iter(state.failures.values()))
            raise SearchError(f"every short run failed, so no layer can be chosen. First failure: {reason}")
        posterior = current_posterior(state, base_select_rewards_I)
        batch = next_batch(state, ladder, posterior)


class RaceReplay:
    """Replays a race from the answers recorded so far, which only grow in number.

    Args:
        config: Settings of the race.
        candidates: Layer sets that may win, with their predictions.
        base_select_rewards_I: Reward of the base model per `select` item.
    """

    def __init__(
        self, config: RaceConfig, candidates: Sequence[Candidate], base_select_rewards_I: Sequence[float]
    ) -> None:
        self._race = race(config, candidates, base_select_rewards_I)
        self._batch: tuple[Run, ...] | None = None
        self._outcome: RaceOutcome | None = None

    def due(self, answers: Mapping[Run, Answer]) -> tuple[Run, ...] | RaceOutcome:
        """Returns the runs of the current batch that have no answer yet, or the outcome if the race is over."""
        try:
            if self._batch is None:
                self._batch = next(self._race)
            while not self._outcome and all(run in answers for run in self._batch):
                self._batch = self._race.send({run: answers[run] for run in self._batch})
        except StopIteration as stop:
            self._outcome = stop.value
        return self._outcome or tuple(run for run in self._batch or () if run not in answers)


def current_posterior(state: RaceState, base_select_rewards_I: Sequence[float]) -> Posterior:
    """Returns the posterior of the candidates' contributions, given all finished runs."""
    eligible = [not state.is_lost(candidate.layers) for candidate in state.candidates]
    return infer(state.config, state.candidates, gather_evidence(state.results, base_select_rewards_I), eligible)


def _stop_reason(state: RaceState, ladder: Ladder, posterior: Posterior) -> str:
    """Returns why a race without a clear or tied verdict ends."""
    if not state.results:
        return "the budget pays for no race, so the prediction decides alone"
    if next_batch(state.without_budget(), ladder, posterior):
        return "the next runs would cost more than is left of the budget"
    return "there is no further run to make, the best layers were trained to the end at every rate and seed"
