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
from dataclasses import asdict, dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.core.errors import TrainingError
from autolayer.search.evidence import check, paired_gain
from autolayer.search.journal import Journal, opened, quiet, reap, run_of, sign
from autolayer.search.learning_rates import learning_rate
from autolayer.search.ledger import Ledger
from autolayer.search.outcome import conclude
from autolayer.search.race import Answer, Racing, look
from autolayer.search.records import TIME_IS_UP, Candidate, Outcome, RaceConfig, Run, SearchError

POLL_SECONDS = 0.2
"""Between looks at the storage while other workers finish a batch."""

RunArm = Callable[[Arm, int], RungResult]
"""Trains an arm on to a step, and scores it."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `on_rung` is told after every run of this process."""

    run: Run
    result: RungResult | None
    """None if the run failed."""
    gain: float | None
    """Mean gain in reward over the base model on the `select` items."""
    failed: str | None
    num_runs: int
    """Runs finished so far, by all workers."""
    spent: Cost


class RunFailed(Exception):
    """A run raised. Recorded with its trial; the race goes on without the arm."""


def run_search(
    config: RaceConfig,
    candidates: Sequence[Candidate],
    base_select_rewards_I: Sequence[float],
    run: RunArm,
    *,
    storage: str,
    on_rung: Callable[[Progress], None] | None = None,
    deadline: float | None = None,
) -> Outcome:
    """Runs a race to its end, or goes on with the one that the storage holds.

    Args:
        config: How the race goes.
        candidates: What may win. A worker that joins a study adopts the ones found there.
        base_select_rewards_I: Reward of the base model per `select` item.
        run: Trains an arm on to a step and scores it on the `select` items. A `TrainingError` is recorded as the
            run's failure; anything else ends this process and leaves a study that the same call resumes.
        storage: An Optuna storage URL, such as sqlite:///run/study.db. Its folder must exist.
        on_rung: Called after every run of this process.
        deadline: `time.monotonic()` after which no run is started; the race then ends with what it has.

    Raises:
        SearchError: Every run of the first batch failed. They are tried again by the next call.
        RunFolderError: The storage holds a race of another configuration.
    """
    with quiet(), opened(storage):
        record = Journal.open(storage, config, candidates, base_select_rewards_I)
        worker = _Worker(record, run, on_rung, deadline)
        while worker.advance():
            record.study.optimize(worker.run_trial, n_trials=1, catch=(RunFailed,))
        assert worker.outcome is not None
        return worker.outcome


class _Worker:
    """One process's part in a race."""

    def __init__(
        self,
        record: Journal,
        run: RunArm,
        on_rung: Callable[[Progress], None] | None,
        deadline: float | None,
    ) -> None:
        self.record, self.run, self.on_rung, self.deadline = record, run, on_rung, deadline
        self.racing = Racing(record.config, record.candidates, record.base_I)
        self.outcome: Outcome | None = None

    def advance(self) -> bool:
        """Enqueues what the race wants next. True once a trial waits to be run, False once the race is over."""
        record = self.record
        while True:
            trials = record.trials()
            answers = record.answers(trials)
            try:
                due = self.racing.due(answers)
            except SearchError:
                record.forgive()
                raise
            if isinstance(due, Outcome):
                self.outcome = due
                self._crown(due, answers)
                return False
            if self.deadline is not None and time.monotonic() >= self.deadline:
                ledger = self._ledger(answers)
                self.outcome = conclude(ledger, look(ledger, record.base_I), record.base_I, None, TIME_IS_UP)
                return False
            taken = {run_of(trial) for trial in trials if not trial.state.is_finished()}
            for run in due:
                if run not in taken:
                    self._enqueue(run, answers)
            if record.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return True
            reap(record.study)
            time.sleep(POLL_SECONDS)

    def run_trial(self, trial: optuna.Trial) -> float:
        """Carries out the run that the trial stands for. Ends as pruned, or as failed if the run raised."""
        record = self.record
        if "run" not in trial.user_attrs or record.is_duplicate(trial.number):
            trial.set_user_attr("idle", "another worker had taken this run")
            raise optuna.TrialPruned
        sign(trial)
        run = run_of(trial)
        arm = Arm(layers=run.slot.layers, learning_rate=trial.params["learning_rate"], seed=run.slot.seed)
        answers = record.answers(record.trials())
        for other, answer in answers.items():
            if isinstance(answer, RungResult) and (other.slot, other.to_step) == (run.slot, run.from_step):
                arm = answer.arm
        try:
            result = self.run(arm, run.to_step)
            check(run, result, record.base_I)
        except TrainingError as error:  # anything else is not the arm's fault: it ends the process, and the run waits
            reason = f"{type(error).__name__}: {error}"
            trial.set_user_attr("failed", reason)
            self._tell(run, None, reason)
            raise RunFailed(reason) from error
        trial.report(paired_gain(result, record.base_I)[0], run.to_step)
        trial.set_user_attr("result", asdict(result))
        self._tell(run, result, None)
        raise optuna.TrialPruned

    def _enqueue(self, run: Run, answers: Mapping[Run, Answer]) -> None:
        """Adds a waiting trial with its parameters and the intermediate values that its arm brings along."""
        results = {each: answer for each, answer in answers.items() if isinstance(answer, RungResult)}
        candidate = next(c for c in self.record.candidates if c.layers == run.slot.layers)
        rate = learning_rate(self.record.config, candidate, run.slot.rate_index)
        trial = create_trial(
            state=TrialState.WAITING,
            params={"layers": _label(run.slot.layers), "learning_rate": rate},
            distributions=self._distributions(candidate),
            intermediate_values=self._curve(run, results),
            user_attrs={"run": asdict(run), "seed": run.slot.seed, "to_step": run.to_step},
        )
        self.record.study.add_trial(trial)

    def _crown(self, outcome: Outcome, answers: Mapping[Run, Answer]) -> None:
        """Enters the winner as the study's only complete trial, once; nothing if it was never run."""
        study, arm = self.record.study, outcome.winner
        study.set_user_attr("verdict", outcome.verdict)
        study.set_user_attr("stop_reason", outcome.stop_reason)
        results = {each: answer for each, answer in answers.items() if isinstance(answer, RungResult)}
        last = next((run for run, result in results.items() if result.arm == arm), None)
        if last is None or study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return
        candidate = next(c for c in self.record.candidates if c.layers == arm.layers)
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=paired_gain(results[last], self.record.base_I)[0],
            params={"layers": _label(last.slot.layers), "learning_rate": arm.learning_rate},
            distributions=self._distributions(candidate),
            intermediate_values=self._curve(last, results),
            user_attrs={"winner": last.key, "checkpoint": arm.checkpoint, "seed": arm.seed},
        )
        study.add_trial(trial)

    def _curve(self, run: Run, results: Mapping[Run, RungResult]) -> dict[int, float]:
        base_I = self.record.base_I
        return {each.to_step: paired_gain(r, base_I)[0] for each, r in results.items() if each.slot == run.slot}

    def _distributions(self, candidate: Candidate) -> dict[str, BaseDistribution]:
        labels = [_label(each.layers) for each in self.record.candidates]
        span = self.record.config.rate_span * (1 + 1e-9)  # a rate at the very end survives rounding
        low, high = candidate.learning_rate / span, candidate.learning_rate * span
        return {"layers": CategoricalDistribution(labels), "learning_rate": FloatDistribution(low, high, log=True)}

    def _ledger(self, answers: Mapping[Run, Answer]) -> Ledger:
        ledger = Ledger(self.record.config, self.record.candidates)
        ledger.add(answers, answers)
        return ledger

    def _tell(self, run: Run, result: RungResult | None, failed: str | None) -> None:
        if self.on_rung is None:
            return
        answers = self.record.answers(self.record.trials())
        progress = Progress(
            run=run,
            result=result,
            gain=paired_gain(result, self.record.base_I)[0] if result else None,
            failed=failed,
            num_runs=len(answers),
            spent=self._ledger(answers).spent,
        )
        self.on_rung(progress)


def _label(layers: tuple[int, ...]) -> str:
    return ",".join(map(str, layers))
