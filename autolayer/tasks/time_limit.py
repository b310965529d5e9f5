"""Calls a user's code with a time limit: a call that hangs becomes an error."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Caller:
    """A thread that makes all calls, one after the other, for libraries whose objects belong to a thread."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="autolayer-environments", daemon=True).start()

    def _serve(self) -> None:
        while True:
            call, answers = self.calls.get()
            try:
                answers.put((call(), None))
            except BaseException as error:  # raised again where the call was asked for
                answers.put((None, error))


_caller: _Caller | None = None


def within(seconds: float, call: Callable[[], T]) -> T:
    """Returns the value of a call, or raises what it raises, or a TimeoutError if it takes longer.

    All calls run one after the other in one thread, which is not the main one. A call that takes longer continues in
    its thread, which ends with the process.
    """
    global _caller
    caller = _caller = _caller or _Caller()
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    caller.calls.put((call, answers))
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        _caller = None  # the next call gets a new thread
        raise TimeoutError(f"not back after {seconds:g} seconds") from None
    except BaseException:  # Ctrl-C
        _caller = None
        raise
    if error is not None:
        raise error
    return value
