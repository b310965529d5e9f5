"""Work that one of several workers does while the others wait: a stage before or after the race.

Held as the race's runs are, by a trial that is claimed atomically and loses its heartbeat with its worker, so that
another takes over what a dead one has begun. Whether it is done is not asked of the study but of what it leaves behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from autolayer.search.journal import connect, opened, quiet, reap, sign

NAME = "autolayer-turns"
POLL_SECONDS = 1.0


def take_turn(storage: str, name: str, work: Callable[[], None], is_done: Callable[[], bool]) -> None:
    """Returns when the work is done, by this worker or by another.

    Args:
        storage: An Optuna storage URL that all workers share.
        name: What is to be done.
        work: Does it. What it raises ends this worker's turn; another worker will try again.
        is_done: Whether what the work leaves behind is there.
    """
    if is_done():
        return
    with quiet(), opened(storage):
        study = connect(storage, NAME)

        def run(trial: optuna.Trial) -> float:
            if trial.user_attrs.get("turn") != name or is_done() or _is_taken(study, name, before=trial.number):
                raise optuna.TrialPruned
            sign(trial)
            work()
            return 0.0

        while not is_done():
            if not _is_taken(study, name):
                study.enqueue_trial({}, user_attrs={"turn": name})
            if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.optimize(run, n_trials=1)
            else:
                reap(study)
                time.sleep(POLL_SECONDS)


def _is_taken(study: optuna.Study, name: str, before: int | None = None) -> bool:
    """Whether somebody is at it, or a trial (older than `before`) waits for somebody."""
    return any(
        trial.user_attrs.get("turn") == name and not trial.state.is_finished()
        for trial in study.get_trials(deepcopy=False)
        if before is None or trial.number < before
    )
