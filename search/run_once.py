"""Runs a stage once across workers: one worker does it while the others wait.

The work is claimed as a trial of an Optuna study, as the race's runs are. A trial whose worker has died is failed, and
another worker starts the work anew. The study does not record that the work is done; `is_done` checks its output.
"""

from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from autolayer.search.optuna_storage import Wait, mark_worker, open_study, quiet_optuna, storage_errors

RUN_ONCE_STUDY = "autolayer-run-once"
RUN_ONCE_POLL_SECONDS = 1.0


def run_once_across_workers(storage: str, name: str, work: Callable[[], None], is_done: Callable[[], bool]) -> None:
    """Does the work of this name unless another worker of the storage does it, and returns when it is done.

    An exception of the work propagates to this worker's caller; the other workers try again.
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

        wait = Wait(study)
        while not is_done():
            if not _is_taken(study, name):
                study.enqueue_trial({}, user_attrs={"work": name})
            if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.optimize(run, n_trials=1)
            else:
                wait.poll(RUN_ONCE_POLL_SECONDS)


def _is_taken(study: optuna.Study, name: str, before: int | None = None) -> bool:
    return any(
        trial.user_attrs.get("work") == name and not trial.state.is_finished()
        for trial in study.get_trials(deepcopy=False)
        if before is None or trial.number < before
    )
