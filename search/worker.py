"""Runs the race as an Optuna study, in which any number of workers can join and resume.

    while worker.advance(): study.optimize(worker.run_trial, n_trials=1)

Each run, that is each arm at each rung, is one trial. `race` decides which runs are due, `advance` enqueues them, and
`study.optimize` claims one of them atomically and keeps its heartbeat. A trial of a higher rung starts with the
intermediate values of the lower ones, so Optuna's plots show whole curves. Every run ends as PRUNED, whether its arm
continues or not. Only the winner is added as COMPLETE, so `study.best_trial` is the winner and not the luckiest short
run.

Not used: Optuna's pruners, which cannot pause an arm, and a sampler that chooses layers, which would be asked only once
a trial is running, so that two workers would choose the same layer.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.core.errors import SearchError, TrainingError
from autolayer.core.layer_set import layers_text, name_layers
from autolayer.core.whole_files import seal
from autolayer.search.evidence import check_result, paired_gain
from autolayer.search.optuna_storage import Storage, Wait, fail_dead_trials, mark_worker, quiet_optuna, storage_errors
from autolayer.search.outcome import conclude
from autolayer.search.race import Answer, Race, current_posterior
from autolayer.search.race_state import RaceState
from autolayer.search.records import TIME_IS_UP, Candidate, RaceConfig, RaceOutcome, Run, Standing
from autolayer.search.study import RaceStudy, run_of, sealed_result

POLL_SECONDS = 0.2

RunArm = Callable[[Arm, int], RungResult]
"""Continues an arm to a step and scores it on the `select` items."""


class RunFailed(Exception):
    """A run raised a `TrainingError`. Its trial records the reason, and the race continues without the arm."""


def run_search(
    config: RaceConfig,
    candidates: Sequence[Candidate],
    base_select_rewards_I: Sequence[float],
    run: RunArm,
    *,
    storage: Storage,
    deadline: float | None = None,
    on_standing: Callable[[Standing], None] = lambda standing: None,
    is_alone: bool = False,
    resumes: bool = False,
) -> RaceOutcome:
    """Runs a race to its end, or resumes the one in the storage. All workers of a race return the same.

    Args:
        config: Settings of the race.
        candidates: Layer sets that may win. A worker that joins a study uses the stored ones instead.
        base_select_rewards_I: Reward of the base model per `select` item.
        run: Continues an arm to a step and scores it on the `select` items. A `TrainingError` is recorded as the
            run's failure. Any other exception propagates, and the same call resumes the study.
        storage: An Optuna storage URL, or a SQLite file, whose folder must exist.
        deadline: `time.monotonic()` after which no run is started. The race then ends with the results so far.
        on_standing: Called with the standing of the race before every run.
        is_alone: True if no other process can take part, so that what an earlier one has begun is repeated at once.
        resumes: The race has begun, so that its study must be there.

    Raises:
        SearchError: Every run of the first batch failed. The next call tries them again.
    """
    with quiet_optuna(), storage_errors(storage):
        race_study = RaceStudy.open(storage, config, candidates, base_select_rewards_I, resumes=resumes)
        fail_dead_trials(race_study.study, is_alone=is_alone)
        worker = _Worker(race_study, run, deadline)
        while worker.advance():
            on_standing(worker.standing)
            race_study.study.optimize(worker.run_trial, n_trials=1, catch=(RunFailed,))
        assert worker.outcome is not None
        return worker.outcome


class _Worker:
    def __init__(self, race_study: RaceStudy, run: RunArm, deadline: float | None) -> None:
        self.race_study, self.run, self.deadline = race_study, run, deadline
        self.race = Race(race_study.config, race_study.candidates, race_study.base_I)
        self.outcome: RaceOutcome | None = None
        self._spent = Cost()

    def advance(self) -> bool:
        """Enqueues the runs that are due. Returns True once a trial waits to be run, False once the race is over.

        Two workers may enqueue a run at the same time. What is left of that when the race is over is taken, too, so
        that no trial of the study waits for ever.
        """
        wait = Wait(self.race_study.study)
        while True:
            trials = self.race_study.trials()
            answers = self.race_study.answers(trials)
            self._spent = sum((each.cost for each in answers.values() if isinstance(each, RungResult)), Cost())
            due = self._due(answers)
            if isinstance(due, RaceOutcome):
                self.outcome = due
                return due.stop_reason != TIME_IS_UP and self._is_any_waiting()
            taken = {run_of(trial) for trial in trials if not trial.state.is_finished()}
            for run in due:
                if run not in taken:
                    self._enqueue(run, answers)
            if self._is_any_waiting():
                return True
            wait.poll(POLL_SECONDS)

    @property
    def standing(self) -> Standing:
        """The standing of the race, with the runs of all workers, when `advance` was called last."""
        return Standing(leader=self.race.leader, probability=self.race.leader_probability, spent=self._spent)

    def run_trial(self, trial: optuna.Trial) -> float:
        """Carries out the trial's run. The trial ends as PRUNED, or as FAIL if the run raised a `TrainingError`."""
        race_study = self.race_study
        if self.outcome is not None or "run" not in trial.user_attrs or race_study.is_duplicate(trial.number):
            trial.set_user_attr("idle", "another worker had taken this run")
            raise optuna.TrialPruned
        mark_worker(trial)
        run = run_of(trial)
        arm = Arm(layers=run.slot.layers, learning_rate=self._rate(run), seed=run.slot.seed)
        answers = race_study.answers(race_study.trials())
        for other, answer in answers.items():
            if isinstance(answer, RungResult) and (other.slot, other.to_step) == (run.slot, run.from_step):
                arm = answer.arm
        try:
            result = self.run(arm, run.to_step)
            check_result(run, result, race_study.base_I)
        except TrainingError as error:  # other exceptions are not the arm's fault and end the process
            reason = f"{type(error).__name__}: {error}"
            trial.set_user_attr("failed", reason)
            raise RunFailed(reason) from error
        trial.report(paired_gain(result, race_study.base_I).mean, run.to_step)
        trial.set_user_attr("result", sealed_result(run, result))
        raise optuna.TrialPruned

    def _is_any_waiting(self) -> bool:
        return bool(self.race_study.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _due(self, answers: Mapping[Run, Answer]) -> tuple[Run, ...] | RaceOutcome:
        try:
            due = self.race.due(answers)
        except SearchError:
            self.race_study.retry_failures()
            raise
        if isinstance(due, RaceOutcome):
            self._enter_winner(due, answers)
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            base_I, state = self.race_study.base_I, RaceState(self.race_study.config, self.race_study.candidates)
            state.add(answers, answers)
            return conclude(state, current_posterior(state, base_I), base_I, None, TIME_IS_UP)
        return due

    def _enqueue(self, run: Run, answers: Mapping[Run, Answer]) -> None:
        attributes = {"run": seal("run", asdict(run)), "seed": run.slot.seed, "to_step": run.to_step}
        self._add_trial(run, answers, attributes, state=TrialState.WAITING)

    def _add_trial(self, run: Run, answers: Mapping[Run, Answer], attributes: dict[str, Any], **options: Any) -> None:
        """Adds a trial of a run's arm to the study, with the mean gain at each of the arm's steps so far."""
        base_I, candidates = self.race_study.base_I, self.race_study.candidates
        curve = {
            each.to_step: paired_gain(answer, base_I).mean
            for each, answer in answers.items()
            if each.slot == run.slot and isinstance(answer, RungResult)
        }
        candidate = next(each for each in candidates if each.layers == run.slot.layers)
        # The factor keeps a rate at the end of the span inside after rounding.
        span = self.race_study.config.rate_span * (1 + 1e-9)
        low, high = candidate.learning_rate / span, candidate.learning_rate * span
        distributions: dict[str, BaseDistribution] = {
            "layers": CategoricalDistribution([layers_text(each.layers) for each in candidates]),
            "learning_rate": FloatDistribution(low, high, log=True),
        }
        arm = f"{name_layers(run.slot.layers)}, rate {self._rate(run):.3g}, seed {run.slot.seed}"
        trial = create_trial(
            params={"layers": layers_text(run.slot.layers), "learning_rate": self._rate(run)},
            distributions=distributions,
            intermediate_values=curve,
            user_attrs={"arm": arm, **attributes},
            **options,
        )
        self.race_study.study.add_trial(trial)

    def _rate(self, run: Run) -> float:
        candidate = next(c for c in self.race_study.candidates if c.layers == run.slot.layers)
        return self.race_study.config.rate_of(candidate, run.slot.rate_index)

    def _enter_winner(self, outcome: RaceOutcome, answers: Mapping[Run, Answer]) -> None:
        """Adds the winner as the study's only complete trial, unless it is there already or was never run."""
        study, arm = self.race_study.study, outcome.winner
        study.set_user_attr("verdict", outcome.verdict)
        study.set_user_attr("stop_reason", outcome.stop_reason)
        results = {each: answer for each, answer in answers.items() if isinstance(answer, RungResult)}
        last = next((run for run, result in results.items() if result.arm == arm), None)
        if last is None or study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return
        attributes = {"winner": last.key, "checkpoint": arm.checkpoint, "seed": arm.seed}
        value = paired_gain(results[last], self.race_study.base_I).mean
        self._add_trial(last, answers, attributes, state=TrialState.COMPLETE, value=value)
