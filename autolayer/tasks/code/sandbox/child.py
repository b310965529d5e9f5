"""Inside the sandbox: the process that runs a program and calls its functions.

It receives nothing that helps a program to cheat: only the program, and arguments or standard input. Its answers are
claims, which other processes compare with the expected values. A program that writes to the pipe itself can only make
other claims.
"""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from autolayer.tasks.code.sandbox import confine, protocol

RAISED, OUT_OF_MEMORY = 70, 71  # exit statuses

_ANSWERS, _REQUESTS = 3, 4


def run(host: Connection, kind: str, mode: str, limits: dict[str, Any], descriptors: Sequence[int | None]) -> int:
    """Runs the next program of the host in this process, and returns the exit status.

    Args:
        host: The connection to read the program from.
        kind: 'calls', 'script' or 'tests'.
        mode: As in `fork_server.main`.
        limits: The fields of `jobs.Limits`.
        descriptors: Pipes for what is printed, for answers, and for requests (kind 'tests'). None is /dev/null.
    """
    job = json.loads(host.recv_bytes())
    folder = os.getcwd()
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, PATH="/nonexistent", LANG="C.UTF-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    out, answers, requests = (nothing if descriptor is None else descriptor for descriptor in descriptors)
    confine.keep_only((_file_with(job.get("stdin", "")), out, nothing, answers, requests))
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
        for name, *arguments in job.get("calls", ()):
            _answer(space, given, name, [protocol.decode(argument) for argument in arguments], {})
        if kind == "tests":
            with os.fdopen(_REQUESTS, "rb") as lines:
                for line in lines:
                    _answer(space, given, *protocol.decode(line))
        sys.stdout.flush()
        return 0
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        sys.stdout.flush()
        return RAISED


def _file_with(text: str) -> int:
    """Returns a descriptor to read the text from. A pipe would block on a long text."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("input")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    confine.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _join_threads() -> None:
    """Waits for threads, as an interpreter does at its end: many solutions run in one with a larger stack."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()


def _answer(
    space: dict[str, Any], given: dict[str, Any], name: str, arguments: Sequence[Any], named: dict[str, Any]
) -> None:
    try:
        line = protocol.encode(_function(space, given, name)(*arguments, **named))
    except MemoryError:
        raise
    except BaseException as error:  # SystemExit too: the next call is another test
        line = protocol.encode(protocol.Failed(type(error).__name__))
    confine.write(_ANSWERS, line.encode() + b"\n")


def _function(space: dict[str, Any], given: dict[str, Any], name: str) -> Any:
    """Returns a function of the program, or a method of its class `Solution`, as some data sets have it.

    Raises:
        NameError: The program defines neither. The names of the prelude do not count.
    """
    if name in space and space[name] is not given.get(name):
        return space[name]
    if "Solution" in space:
        return getattr(space["Solution"](), name)
    raise NameError(name)
