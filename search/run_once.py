"""Work that one of several workers does while the others wait: a stage before or after the race.

Held as the race's runs are, by a trial that is claimed atomically and loses its heartbeat with its worker, so that
another takes over what a dead one has begun. Whether it is done is not asked of the study but of what it leaves behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from autolayer.search.optuna_storage import fail_dead_trials, mark_worker, open_study, quiet_optuna, storage_errors

RUN_ONCE_STUDY = "autolayer-run-once"
RUN_ONCE_POLL_SECONDS = 1.0


def run_once(storage: str, name: str, work: Callable[[], None], is_done: Callable[[], bool]) -> None:
    """Returns when the work is done, by this worker or by another.

    Args:
        storage: An Optuna storage URL that all workers share.
        name: What is to be done.
        work: Does it. What it raises ends this worker's turn; another worker will try again.
        is_done: Whether what the work leaves behind is there.
    """
    if is_done():
        return
    with quiet_optuna(), storage_errors(storage):
        study = open_study(storage, RUN_ONCE_STUDY)

        def run(trial: optuna.Trial) -> float:
            if trial.user_attrs.get("work") != name or is_done() or _is_taken(study, name, before=trial.number):
                raise optuna.TrialPruned
            mark_worker(trial)
            work()
            return 0.0

        while not is_done():
            if not _is_taken(study, name):
                study.enqueue_trial({}, user_attrs={"work": name})
            if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.optimize(run, n_trials=1)
            else:
                fail_dead_trials(study)
                time.sleep(RUN_ONCE_POLL_SECONDS)


def _is_taken(study: optuna.Study, name: str, before: int | None = None) -> bool:
    """Whether somebody is at it, or a trial (older than `before`) waits for somebody."""
    return any(
        trial.user_attrs.get("work") == name and not trial.state.is_finished()
        for trial in study.get_trials(deepcopy=False)
        if before is None or trial.number < before
    )
