"""Calls a user's code with a time limit: a call that hangs becomes an error."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]] | None = None
"""The calls of one thread, which makes all of them, for libraries whose objects belong to a thread."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Returns the value of a call, or raises what it raises, or a TimeoutError if it takes longer.

    All calls run one after the other in one thread, which is not the main one. A call that takes longer continues in
    its thread, which ends with the process.
    """
    global _calls
    if _calls is None:
        _calls = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(_calls,), name="autolayer-environments", daemon=True).start()
    future: Future[T] = Future()
    _calls.put((call, future))
    try:
        return future.result(seconds)
    except BaseException as error:
        if future.done():  # the call itself has raised it
            raise
        _calls = None  # the next call gets a new thread
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"not back after {seconds:g} seconds") from None
        raise  # Ctrl-C


def _serve(calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]]) -> None:
    while True:
        call, future = calls.get()
        try:
            future.set_result(call())
        except BaseException as error:  # raised again where the call was asked for
            future.set_exception(error)
