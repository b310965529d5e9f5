"""Inside the sandbox: the process that runs a program and calls its functions.

It receives only the program, and arguments or standard input. Its answers are claims, which other processes compare
with the expected values. A program that writes them itself can only make other claims.
"""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from autolayer.tasks.code.sandbox import confine, protocol

RAISED, OUT_OF_MEMORY = 70, 71  # exit statuses
_ANSWERS = 3  # the descriptor of the result, or of the connection to the judge


def run_child(source: Connection, result: int, kind: str, mode: str, limits: dict[str, Any]) -> int:
    """Runs the program that host or judge send, with a file for what it prints or returns. Returns the exit status."""
    job = json.loads(source.recv_bytes())
    folder = os.getcwd()
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, PATH="/nonexistent", LANG="C.UTF-8")
    with tempfile.TemporaryFile(dir=".") as file:  # a pipe would block on a long text
        file.write(job.get("stdin", "").encode())
        file.seek(0)
        stdin = os.dup(file.fileno())
    nothing = os.open(os.devnull, os.O_RDWR)
    printed, answers = (result if kind == "script" else nothing), (source.fileno() if kind == "tests" else result)
    confine.keep_only((stdin, printed, nothing, answers))
    confine.lock_up(mode, limits)
    try:
        space: dict[str, Any] = {"__name__": "__main__" if kind == "script" else "solution"}
        exec(job.get("prelude", ""), space)
        given = dict(space)
        try:
            exec(compile(job["program"], "solution.py", "exec"), space)
            if kind == "script":
                _join_threads()
        except SystemExit:  # a script may end this way; a module keeps what it has defined until then
            pass
        with open(_ANSWERS, "wb", closefd=False) as file:
            for name, arguments in job.get("calls", ()):
                file.write(_answer(space, given, (name, arguments, {})) + b"\n")
                file.flush()
        if kind == "tests":
            _serve(Connection(_ANSWERS), space, given)
        sys.stdout.flush()
        return 0
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        sys.stdout.flush()
        return RAISED


def _join_threads() -> None:
    # As an interpreter does at its end, because many solutions run in a thread with a larger stack.
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()


def _serve(judge: Connection, space: dict[str, Any], given: dict[str, Any]) -> None:
    while True:
        try:
            call = protocol.from_json(json.loads(judge.recv_bytes()))
        except (EOFError, OSError):
            return
        judge.send_bytes(_answer(space, given, call, protocol.to_json))


def _answer(
    space: dict[str, Any],
    given: dict[str, Any],
    call: Sequence[Any],
    to_json: Callable[[Any], Any] = lambda value: value,
) -> bytes:
    """Returns the name of the exception that a call raised, or None, and its value."""
    name, arguments, named = call
    try:
        value = to_json(_function(space, given, name)(*arguments, **named))
        return json.dumps([None, value]).encode()
    except MemoryError:
        raise
    except BaseException as error:  # SystemExit too: the next call is another test
        return json.dumps([type(error).__name__, None]).encode()


def _function(space: dict[str, Any], given: dict[str, Any], name: str) -> Any:
    """Returns a function that the program, not the prelude, defines, or a method of its class `Solution`."""
    if name in space and space[name] is not given.get(name):
        return space[name]
    if "Solution" in space:
        return getattr(space["Solution"](), name)
    raise NameError(name)
