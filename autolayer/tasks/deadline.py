"""Interrupts a reward that is still running after the deadline of the run (--hours).

A reward runs in the main thread, because `signal.alarm`, on which time limits such as math-verify's are built, works
only there. A second thread therefore watches the time and sends SIGINT to the main thread, where the handler raises.
Environments have a time limit of their own (time_limit.py).
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE = 30.0
"""Seconds after the deadline in which a call of a reward may end."""
SLOWER = 3.0
"""A call that begins after the deadline, for the evaluation, may take this many times as long per completion as the
slowest one before it, if that is longer."""
AGAIN = 2.0
"""Seconds after which a reward that has caught the interruption is interrupted again."""

LONGEST_WAIT = 3600.0
"""Seconds; longer ones are several waits, because a lock cannot wait for years."""

_deadline = math.inf
_slowest = 0.0  # seconds per completion


class Overdue(BaseException):
    """Raised inside a reward; no `Exception`, so that a reward's own error handling lets it pass."""


@contextmanager
def rewards_end_by(deadline: float) -> Iterator[None]:
    """Interrupts rewards that run after `deadline`, a value of `time.monotonic()`, while the block runs."""
    global _deadline
    before, _deadline = _deadline, deadline
    try:
        yield
    finally:
        _deadline = before


def is_over(after: float) -> bool:
    """Returns True if a call of a reward that begins in `after` seconds would begin too late."""
    return time.monotonic() + after > _deadline


@contextmanager
def interrupted_when_overdue(num_completions: int) -> Iterator[None]:
    """Raises `Overdue` in the block, which calls a reward, when it runs too long after the deadline.

    Ctrl-C works as before. Outside the main thread nothing can be interrupted, and the block runs as it is.
    """
    global _slowest
    if _deadline == math.inf or threading.current_thread() is not threading.main_thread():
        yield
        return
    started = time.monotonic()
    limit = max(_deadline, started) + max(GRACE, SLOWER * _slowest * num_completions)
    is_done = threading.Event()

    lock = threading.RLock()  # no signal is sent once the block is done

    def watch() -> None:
        while not is_done.wait(min(max(AGAIN, limit - time.monotonic()), LONGEST_WAIT)):
            with lock:
                if time.monotonic() >= limit and not is_done.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if time.monotonic() >= limit and not is_done.is_set():
            raise Overdue
        if callable(before):
            before(number, frame)

    watcher = threading.Thread(target=watch, name="autolayer-deadline", daemon=True)
    before = signal.signal(signal.SIGINT, handle)
    try:
        watcher.start()
        try:
            yield
        finally:
            with lock:
                is_done.set()
    finally:
        is_done.set()  # again, if the interruption came between the two
        watcher.join()
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    _slowest = max(_slowest, (time.monotonic() - started) / num_completions)
