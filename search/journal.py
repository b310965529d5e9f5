"""The race's record in an Optuna study: what was asked, what was answered, who is at work on what.

Everything a worker needs is in the study, so a killed process leaves nothing behind that the next one lacks. Answers
are kept in the trials' user attributes: `run` (what was asked), `result` or `failed` (what became of it), `worker`.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import optuna
import sqlalchemy.event
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError
from autolayer.search.race import Answer
from autolayer.search.records import Candidate, RaceConfig, Run, Slot

NAME = "autolayer"
HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 120
"""A worker on another machine that has not been heard of for the second is taken for dead, and its run is repeated."""
TRIES = 6
"""To make the tables, where several workers start at once."""
_WORKER = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}


@contextmanager
def opened(storage: str) -> Iterator[None]:
    """Says in one sentence what is wrong with a storage, instead of a database's own words.

    Raises:
        RunFolderError: It cannot be opened, is damaged, or needs a driver that is not installed.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        where = re.sub(r":[^:@/]*@", ":***@", storage.removeprefix("sqlite:///"))  # a password stays unseen
        cure = "give a --storage that Optuna can open, or leave it out"
        if storage.startswith("sqlite") and where.endswith("/study.db"):  # a run's own
            cure = "delete that file to redo the search, or choose another --out"
        elif isinstance(error, ImportError) and storage.startswith("postgresql"):
            cure = '`pip install "autolayer[postgres]"`, and write --storage postgresql+pg8000://...'
        raise RunFolderError(
            f"the study in {where} cannot be used ({str(error).splitlines()[0].rstrip('.')}): {cure}."
        ) from error


def check_storage(storage: str, signature: str | None = None) -> None:
    """Opens a storage and does nothing with it, so that a wrong one is found before the work begins.

    Raises:
        RunFolderError: It cannot be opened, or holds a race of another configuration.
    """
    with quiet(), opened(storage):
        backend = _backend(storage)
        if signature is None or NAME not in optuna.get_all_study_names(backend):
            return
        found = optuna.load_study(study_name=NAME, storage=backend).user_attrs.get("inputs")
        if found is not None and found["identity"]["signature"] != signature:
            raise _other_race(storage, ["signature"])


def _other_race(storage: str, names: Sequence[str]) -> RunFolderError:
    return RunFolderError(
        f"the study '{NAME}' in {storage} holds a race with another {', '.join(names)}: give another --storage or "
        "--out, or the settings it was started with."
    )


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A study, and the race that it holds."""

    study: optuna.Study
    config: RaceConfig
    candidates: tuple[Candidate, ...]
    base_I: tuple[float, ...]

    @classmethod
    def open(
        cls, storage: str, config: RaceConfig, candidates: Sequence[Candidate], base_I: Sequence[float]
    ) -> Journal:
        """Creates the study, or goes on with it: then candidates, base rewards and costs are those found in it.

        A worker on another machine measures predictions that differ in the last digits; deciding on one record, all
        must decide on one input.

        Raises:
            RunFolderError: The study belongs to another configuration.
        """
        study = connect(storage, NAME)
        if "inputs" not in study.user_attrs:
            study.set_user_attr("inputs", _inputs(config, candidates, base_I))
        found, wanted = study.user_attrs["inputs"], _inputs(config, candidates, base_I)
        if found["identity"] != json.loads(json.dumps(wanted["identity"])):
            names = [name for name, value in found["identity"].items() if value != wanted["identity"][name]]
            raise _other_race(storage, names)
        journal = cls(
            study=study,
            config=_adopt(config, found),
            candidates=tuple(Candidate(**{**c, "layers": tuple(c["layers"])}) for c in found["candidates"]),
            base_I=tuple(found["base_select_rewards_I"]),
        )
        return journal

    def trials(self) -> list[FrozenTrial]:
        """All trials that stand for a run, oldest first."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "run" in trial.user_attrs]

    def answers(self, trials: Sequence[FrozenTrial]) -> dict[Run, Answer]:
        """What became of the runs, each counted once. An interrupted run has no answer: it is asked for again."""
        answers: dict[Run, Answer] = {}
        forgiven = self.study.user_attrs.get("forgiven", -1)
        for trial in trials:
            run = run_of(trial)
            if "result" in trial.user_attrs:
                answers.setdefault(run, _result_from(trial.user_attrs["result"]))
            elif "failed" in trial.user_attrs and trial.number > forgiven:
                answers.setdefault(run, trial.user_attrs["failed"])
        return answers

    def forgive(self) -> None:
        """Lets every failure so far be tried again by the next process."""
        self.study.set_user_attr("forgiven", max((trial.number for trial in self.trials()), default=-1))

    def is_duplicate(self, number: int) -> bool:
        """True if an older trial stands for the same run: two workers may enqueue one run at the same time."""
        trials = self.trials()
        mine = next(trial for trial in trials if trial.number == number)
        rivals = [t for t in trials if t.number < number and t.user_attrs["run"] == mine.user_attrs["run"]]
        return any(not t.state.is_finished() or "result" in t.user_attrs for t in rivals)


def connect(storage: str, name: str) -> optuna.Study:
    """A study, made where there is none."""
    backend = _backend(storage)
    if storage.startswith("sqlite"):
        # Python's sqlite3 begins a transaction at the first write, so two workers could both read that a trial
        # waits and both claim it. Taking the write lock before the read makes the claim atomic.
        sqlalchemy.event.listen(backend.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    study = optuna.create_study(
        study_name=name, storage=backend, load_if_exists=True, direction="maximize", sampler=QueueSampler()
    )
    reap(study)
    return study


def _backend(storage: str) -> optuna.storages.RDBStorage:
    """Optuna's storage, its tables made where there are none."""
    arguments = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else None
    for attempt in range(TRIES):
        try:
            return optuna.storages.RDBStorage(
                storage, engine_kwargs=arguments, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
        except SQLAlchemyError as error:
            beaten = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not beaten or attempt + 1 == TRIES:
                raise
            time.sleep(random.uniform(0, 0.2 * 2**attempt))  # another worker is making them at this moment
    raise AssertionError("the last try returns or raises")


def sign(trial: optuna.Trial) -> None:
    """Notes which process runs the trial."""
    trial.set_user_attr("worker", _WORKER)


def reap(study: optuna.Study) -> None:
    """Gives up the running trials of workers that have gone silent, so that their work is asked for again."""
    optuna.storages.fail_stale_trials(study)
    limit = datetime.now() - timedelta(seconds=GRACE_SECONDS)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        # Without: it died between claiming the trial and its first sign of life, and no heartbeat could go stale.
        lost = worker is None and trial.datetime_start is not None and trial.datetime_start < limit
        dead = worker is not None and worker["host"] == _WORKER["host"] and _is_dead(worker)  # no heartbeat to wait for
        if lost or dead:
            _give_up(study, trial)


def _give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
        study.tell(trial.number, state=TrialState.FAIL)


class QueueSampler(optuna.samplers.BaseSampler):
    """Takes everything from the queue: the race chooses the layers, `learning_rates` the rates."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise ValueError(f"'{param_name}' is not in the queue: autolayer enqueues the trials of this study itself.")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Optuna's log and its warnings about experimental parts; autolayer reports progress itself."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def run_of(trial: FrozenTrial | optuna.Trial) -> Run:
    """The run that a trial stands for."""
    stored = trial.user_attrs["run"]
    slot = Slot(**{**stored["slot"], "layers": tuple(stored["slot"]["layers"])})
    return Run(slot=slot, from_step=stored["from_step"], to_step=stored["to_step"])


def _result_from(stored: dict[str, Any]) -> RungResult:
    return RungResult(
        arm=Arm(**{**stored["arm"], "layers": tuple(stored["arm"]["layers"])}),
        select_rewards_I=tuple(stored["select_rewards_I"]),
        train_rewards_P=tuple(stored["train_rewards_P"]),
        cost=Cost(**stored["cost"]),
    )


def _inputs(config: RaceConfig, candidates: Sequence[Candidate], base_I: Sequence[float]) -> dict[str, Any]:
    same = ("signature", "seed", "num_layers", "total_steps", "regret", "confidence", "rate_span", "fixed_rate")
    return {
        "identity": {name: getattr(config, name) for name in same}
        | {"candidates": [list(candidate.layers) for candidate in candidates], "num_select": len(base_I)},
        "candidates": [asdict(candidate) for candidate in candidates],
        "base_select_rewards_I": [float(reward) for reward in base_I],
        "budget": asdict(config.budget),
        "eval_cost": asdict(config.eval_cost),
        "step_costs": [asdict(config.step_cost(candidate.layers)) for candidate in candidates],
    }


def _adopt(config: RaceConfig, inputs: dict[str, Any]) -> RaceConfig:
    costs = {
        tuple(candidate["layers"]): Cost(**cost)
        for candidate, cost in zip(inputs["candidates"], inputs["step_costs"], strict=True)
    }
    return replace(
        config,
        budget=Cost(**inputs["budget"]),
        eval_cost=Cost(**inputs["eval_cost"]),
        step_cost=lambda layers: costs[layers] if layers != "full" else config.step_cost(layers),
    )


def _is_dead(worker: dict[str, Any]) -> bool:
    if worker["pid"] == _WORKER["pid"]:
        return worker["token"] != _WORKER["token"]  # containers start with the same pid again and again
    if os.name == "nt":
        return False  # there signal 0 is no question; the heartbeat decides
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's process, but alive
    return False
