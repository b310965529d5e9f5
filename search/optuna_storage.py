"""Opens Optuna storages and studies, and takes back the trials of workers that have died."""

import logging
import os
import random
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
import sqlalchemy.event
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from autolayer.core.errors import RunFolderError
from autolayer.core.quiet import quiet
from autolayer.core.run_folder import RunFolder
from autolayer.core.shown_text import hide_parts_of, hide_url

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 120
"""Interval of a worker's heartbeat, and the silence after which a worker on another machine counts as dead."""
BUSY_SECONDS = 60
"""Time to wait for a SQLite file that another worker has locked."""
MAX_TABLE_ATTEMPTS = 6
"""Attempts to create the tables, which fail if several workers start at the same time."""
TELL_SECONDS = 10.0
"""Time that a worker waits for others before it says so."""
quiet_optuna = partial(quiet, "optuna", category=optuna.exceptions.ExperimentalWarning)
"""A context that silences Optuna's log and its warnings about experimental features."""
Storage = str | Path
"""An Optuna storage URL, or a SQLite file."""
_PASSING = {
    "is full": "free some space on the disk",
    "is locked": "end the process that holds it",
    "disk I/O error": "see that its disk works and has space",
}
"""Reasons of SQLite that leave the study whole, and what to do."""


@cache
def _worker(pid: int) -> dict[str, Any]:
    """Returns what names a process of this machine: a fork is another worker than the process it was made from."""
    return {"host": socket.gethostname(), "pid": pid, "token": uuid.uuid4().hex}


class _DriverMissing(Exception):
    """The driver of a database is not installed."""


@contextmanager
def storage_errors(storage: Storage) -> Iterator[None]:
    """Turns the errors of a database, and of a driver that is missing, into one sentence with its remedy."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, _DriverMissing, AssertionError, UnboundLocalError) as error:
        cause = _storage_error(error)
        if cause is None:
            raise
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0].rstrip(".")
        reason = reason if isinstance(storage, Path) else hide_parts_of(storage, reason)
        cure = "give a --storage that Optuna can open, or leave it out"
        if "its race is lost" in reason and isinstance(storage, str):
            cure = "give the --storage that the race began with, or delete the run folder's arms to begin again"
        elif passing := next((cure for words, cure in _PASSING.items() if words in reason), None):
            cure = f"{passing}, and repeat the command, which resumes"
        elif isinstance(storage, Path):  # in the run folder
            cure = f"restore it, {RunFolder(storage.parent).search_again}, or choose another --out"
        elif isinstance(cause, _DriverMissing) and storage.startswith("postgresql"):
            cure = '`pip install -e ".[postgres]"`, and write --storage postgresql+pg8000://...'
        raise RunFolderError(f"the study in {shown_storage(storage)} cannot be used ({reason}): {cure}.") from error


def _storage_error(error: BaseException | None) -> BaseException | None:
    """Returns the error of the database that is behind an error, or None.

    Optuna fails in its own handling of a storage that fails, which hides the reason.
    """
    found = None
    while error is not None:
        if isinstance(error, SQLAlchemyError | StorageInternalError | _DriverMissing):
            found = error
        error = error.__cause__ or error.__context__
        if isinstance(found, SQLAlchemyError):
            break
    return found


@contextmanager
def reading_study() -> Iterator[None]:
    """Turns the errors that damaged content of a study causes into an error of its storage."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StorageInternalError(f"it is damaged: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def shown_storage(storage: Storage) -> str:
    """Returns the name of a storage for a message, without passwords."""
    return str(storage) if isinstance(storage, Path) else hide_url(storage.removeprefix("sqlite:///"))


def open_study(storage: Storage, name: str) -> optuna.Study:
    """Opens a study, creates it if needed, and fails the trials of dead workers."""
    backend = open_storage(storage)
    if backend.engine.dialect.name == "sqlite":
        with backend.engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            raise StorageInternalError(f"it is damaged: {found}")
        # Python's sqlite3 begins a transaction at the first write, so two workers could both read that a trial
        # waits and both claim it. Taking the write lock before the read makes the claim atomic.
        sqlalchemy.event.listen(backend.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    study = optuna.create_study(
        study_name=name,
        storage=backend,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(),  # it is never asked: the enqueued trials have all their parameters
    )
    fail_dead_trials(study)
    return study


def check_storage_opens(storage: str) -> None:
    """Refuses the URL of a storage that cannot be opened. Nothing is written, and no file is made."""
    with storage_errors(storage):
        url, arguments = _engine_options(storage)
        try:
            engine = sqlalchemy.create_engine(url, **arguments)
        except ImportError as error:
            raise _DriverMissing(str(error)) from error
        file = engine.url.database if engine.dialect.name == "sqlite" else None
        if file and not Path(file).exists():
            if not os.access(Path(file).absolute().parent, os.W_OK):
                raise StorageInternalError("its folder does not exist or cannot be written to")
            return
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).has_table("studies")
        engine.dispose()


def _engine_options(storage: str) -> tuple[str, dict[str, Any]]:
    """Returns the URL and the arguments for SQLAlchemy. The error of a URL that is none leaves out its text."""
    try:
        sqlalchemy.make_url(storage)
    except ValueError:
        raise ArgumentError("its port is no number") from None  # the text may be a password
    return storage, {"connect_args": {"timeout": BUSY_SECONDS}} if storage.startswith("sqlite") else {}


def open_storage(storage: Storage) -> optuna.storages.RDBStorage:
    """Opens a storage and creates its tables if needed."""
    if isinstance(storage, Path):  # connected without a URL, in which some characters of a path have a meaning
        connect = partial(sqlite3.connect, storage, timeout=BUSY_SECONDS, check_same_thread=False)
        url, arguments = "sqlite:///study.db", {"creator": connect}
    else:
        url, arguments = _engine_options(storage)
        url = url.replace("{", "{{").replace("}", "}}")  # Optuna takes braces for a template
    for attempt in range(MAX_TABLE_ATTEMPTS):
        try:
            return _Storage(
                url, engine_kwargs=arguments, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
        except ImportError as error:
            raise _DriverMissing(str(error)) from error
        except SQLAlchemyError as error:
            beaten = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not beaten or attempt + 1 == MAX_TABLE_ATTEMPTS:
                raise
            time.sleep(random.uniform(0, 0.2 * 2**attempt))  # another worker is creating them
    raise AssertionError("the last try returns or raises")


class _Storage(optuna.storages.RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(SQLAlchemyError, StorageInternalError):  # the worker itself finds out that the storage fails
            super().record_heartbeat(trial_id)


def mark_worker(trial: optuna.Trial) -> None:
    """Records in the trial which process runs it."""
    trial.set_user_attr("worker", _worker(os.getpid()))


class Wait:
    """Waits for other workers: takes back what dead ones have claimed, and says once whom it waits for."""

    def __init__(self, study: optuna.Study) -> None:
        self.study, self.since = study, time.monotonic()

    def poll(self, seconds: float) -> None:
        """Sleeps until it is time to look again."""
        fail_dead_trials(self.study)
        if time.monotonic() > self.since + TELL_SECONDS:
            self.since = float("inf")
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            workers = [trial.user_attrs.get("worker") for trial in running]
            who = [f"process {w['pid']} on {w['host']}" if w else "a worker that has not signed" for w in workers]
            logger.warning(
                "waiting for %s; what a worker without a sign of life has begun is done again after %d seconds.",
                " and ".join(who) or "other workers of the storage", GRACE_SECONDS,
            )  # fmt: skip
        time.sleep(seconds)


def fail_dead_trials(study: optuna.Study, *, is_alone: bool = False) -> None:
    """Fails the running trials of dead workers (`is_alone`: of all others), so that their work is repeated."""
    optuna.storages.fail_stale_trials(study)
    limit = datetime.now() - timedelta(seconds=GRACE_SECONDS)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        # A worker without a mark died between claiming the trial and its first heartbeat, so none could go stale.
        lost = worker is None and trial.datetime_start is not None and trial.datetime_start < limit
        dead = worker is not None and worker["host"] == socket.gethostname() and _is_dead(worker)
        if is_alone or lost or dead:
            with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
                study.tell(trial.number, state=TrialState.FAIL)


def _is_dead(worker: dict[str, Any]) -> bool:
    if worker["pid"] == os.getpid():
        return worker != _worker(os.getpid())  # containers reuse the same pid
    return not psutil.pid_exists(worker["pid"])
