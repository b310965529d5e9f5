"""The Optuna study that holds a race: claims runs, records results, survives crashes, lets other workers join.

    while worker.advance(): study.optimize(worker.run_trial, n_trials=1)

One trial per run, that is, per arm and rung. The race (pure) says which runs are due; `advance` enqueues them,
`optimize` claims one of them atomically and keeps its heartbeat. A trial of a higher rung starts with the intermediate
values of the lower one, so curves are whole. Runs end as PRUNED, paused or dropped, and only the winner is entered as
COMPLETE, so `study.best_trial` is the winner and not whoever was luckiest in a short run.

Left out on purpose: a pruner, which cannot pause an arm, and a sampler that chooses layers, which works after its trial
is already running, so that two workers would choose alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from autolayer.core.arms import Arm, RungResult
from autolayer.core.errors import TrainingError
from autolayer.search.evidence import check_result, paired_gain
from autolayer.search.learning_rates import slot_learning_rate
from autolayer.search.optuna_storage import fail_dead_trials, mark_worker, quiet_optuna, storage_errors
from autolayer.search.outcome import conclude
from autolayer.search.race import Answer, RaceReplay, current_posterior
from autolayer.search.race_state import RaceState
from autolayer.search.records import TIME_IS_UP, Candidate, RaceConfig, RaceOutcome, Run, SearchError
from autolayer.search.study import RaceStudy, run_of

POLL_SECONDS = 0.2
"""Between looks at the storage while other workers finish a batch."""

RunArm = Callable[[Arm, int], RungResult]
"""Trains an arm on to a step, and scores it."""


class RunFailed(Exception):
    """A run raised. Recorded with its trial; the race goes on without the arm."""


def run_search(
    config: RaceConfig,
    candidates: Sequence[Candidate],
    base_select_rewards_I: Sequence[float],
    run: RunArm,
    *,
    storage: str,
    deadline: float | None = None,
) -> RaceOutcome:
    """Runs a race to its end, or goes on with the one that the storage holds.

    Args:
        config: How the race goes.
        candidates: What may win. A worker that joins a study adopts the ones found there.
        base_select_rewards_I: Reward of the base model per `select` item.
        run: Trains an arm on to a step and scores it on the `select` items. A `TrainingError` is recorded as the
            run's failure; anything else ends this process and leaves a study that the same call resumes.
        storage: An Optuna storage URL, such as sqlite:///run/study.db. Its folder must exist.
        deadline: `time.monotonic()` after which no run is started; the race then ends with what it has.

    Raises:
        SearchError: Every run of the first batch failed. They are tried again by the next call.
        RunFolderError: The storage holds a race of another configuration.
    """
    with quiet_optuna(), storage_errors(storage):
        race_study = RaceStudy.open(storage, config, candidates, base_select_rewards_I)
        worker = _Worker(race_study, run, deadline)
        while worker.advance():
            race_study.study.optimize(worker.run_trial, n_trials=1, catch=(RunFailed,))
        assert worker.outcome is not None
        return worker.outcome


class _Worker:
    """One process's part in a race."""

    def __init__(
        self,
        race_study: RaceStudy,
        run: RunArm,
        deadline: float | None,
    ) -> None:
        self.race_study, self.run, self.deadline = race_study, run, deadline
        self.replay = RaceReplay(race_study.config, race_study.candidates, race_study.base_I)
        self.outcome: RaceOutcome | None = None

    def advance(self) -> bool:
        """Enqueues what the race wants next. True once a trial waits to be run, False once the race is over."""
        race_study = self.race_study
        while True:
            trials = race_study.trials()
            answers = race_study.answers(trials)
            try:
                due = self.replay.due(answers)
            except SearchError:
                race_study.retry_failures()
                raise
            if isinstance(due, RaceOutcome):
                self.outcome = due
                self._enter_winner(due, answers)
                return False
            if self.deadline is not None and time.monotonic() >= self.deadline:
                state = self._state(answers)
                posterior = current_posterior(state, race_study.base_I)
                self.outcome = conclude(state, posterior, race_study.base_I, None, TIME_IS_UP)
                return False
            taken = {run_of(trial) for trial in trials if not trial.state.is_finished()}
            for run in due:
                if run not in taken:
                    self._enqueue(run, answers)
            if race_study.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return True
            fail_dead_trials(race_study.study)
            time.sleep(POLL_SECONDS)

    def run_trial(self, trial: optuna.Trial) -> float:
        """Carries out the run that the trial stands for. Ends as pruned, or as failed if the run raised."""
        race_study = self.race_study
        if "run" not in trial.user_attrs or race_study.is_duplicate(trial.number):
            trial.set_user_attr("idle", "another worker had taken this run")
            raise optuna.TrialPruned
        mark_worker(trial)
        run = run_of(trial)
        arm = Arm(layers=run.slot.layers, learning_rate=trial.params["learning_rate"], seed=run.slot.seed)
        answers = race_study.answers(race_study.trials())
        for other, answer in answers.items():
            if isinstance(answer, RungResult) and (other.slot, other.to_step) == (run.slot, run.from_step):
                arm = answer.arm
        try:
            result = self.run(arm, run.to_step)
            check_result(run, result, race_study.base_I)
        except TrainingError as error:  # anything else is not the arm's fault: it ends the process, and the run waits
            reason = f"{type(error).__name__}: {error}"
            trial.set_user_attr("failed", reason)
            raise RunFailed(reason) from error
        trial.report(paired_gain(result, race_study.base_I)[0], run.to_step)
        trial.set_user_attr("result", asdict(result))
        raise optuna.TrialPruned

    def _enqueue(self, run: Run, answers: Mapping[Run, Answer]) -> None:
        """Adds a waiting trial with its parameters and the intermediate values that its arm brings along."""
        results = {each: answer for each, answer in answers.items() if isinstance(answer, RungResult)}
        candidate = next(c for c in self.race_study.candidates if c.layers == run.slot.layers)
        rate = slot_learning_rate(self.race_study.config, candidate, run.slot.rate_index)
        trial = create_trial(
            state=TrialState.WAITING,
            params={"layers": _label(run.slot.layers), "learning_rate": rate},
            distributions=self._distributions(candidate),
            intermediate_values=self._curve(run, results),
            user_attrs={"run": asdict(run), "seed": run.slot.seed, "to_step": run.to_step},
        )
        self.race_study.study.add_trial(trial)

    def _enter_winner(self, outcome: RaceOutcome, answers: Mapping[Run, Answer]) -> None:
        """Enters the winner as the study's only complete trial, once; nothing if it was never run."""
        study, arm = self.race_study.study, outcome.winner
        study.set_user_attr("verdict", outcome.verdict)
        study.set_user_attr("stop_reason", outcome.stop_reason)
        results = {each: answer for each, answer in answers.items() if isinstance(answer, RungResult)}
        last = next((run for run, result in results.items() if result.arm == arm), None)
        if last is None or study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return
        candidate = next(c for c in self.race_study.candidates if c.layers == arm.layers)
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=paired_gain(results[last], self.race_study.base_I)[0],
            params={"layers": _label(last.slot.layers), "learning_rate": arm.learning_rate},
            distributions=self._distributions(candidate),
            intermediate_values=self._curve(last, results),
            user_attrs={"winner": last.key, "checkpoint": arm.checkpoint, "seed": arm.seed},
        )
        study.add_trial(trial)

    def _curve(self, run: Run, results: Mapping[Run, RungResult]) -> dict[int, float]:
        base_I = self.race_study.base_I
        return {each.to_step: paired_gain(r, base_I)[0] for each, r in results.items() if each.slot == run.slot}

    def _distributions(self, candidate: Candidate) -> dict[str, BaseDistribution]:
        labels = [_label(each.layers) for each in self.race_study.candidates]
        span = self.race_study.config.rate_span * (1 + 1e-9)  # a rate at the very end survives rounding
        low, high = candidate.learning_rate / span, candidate.learning_rate * span
        return {"layers": CategoricalDistribution(labels), "learning_rate": FloatDistribution(low, high, log=True)}

    def _state(self, answers: Mapping[Run, Answer]) -> RaceState:
        state = RaceState(self.race_study.config, self.race_study.candidates)
        state.add(answers, answers)
        return state


def _label(layers: tuple[int, ...]) -> str:
    return ",".join(map(str, layers))
