"""Inside the sandbox: the process that runs a program, and calls its functions.

It is told nothing that it could cheat with: a program, and arguments or a standard input. What it answers are claims,
which are compared with the expected values elsewhere. A program that writes to the pipe itself can only claim values.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from autolayer.tasks.code import confine, wire

RAISED, OUT_OF_MEMORY = 70, 71  # exit statuses
SANDBOX_PROCESSES = 4  # zygote, supervisor, judge and the child itself, where they all are one account's

_STDOUT, _ANSWERS, _REQUESTS = 1, 3, 4


def run(mode: str, job: dict[str, Any], limits: dict[str, Any], descriptors: Sequence[int | None]) -> int:
    """Runs the job's program in this process, which is used up by it.

    Args:
        mode: As in `zygote.main`.
        job: `kind`, `program`, and for kind 'stdin' the `input`. Of kind 'calls' it is read here, so that nobody else
            has it: `program` and `calls`, each [function, *encoded arguments].
        limits: As in `limits.Limits`.
        descriptors: To write what is printed, to write answers, to read requests (kind 'tests').

    Returns:
        The exit status.
    """
    out, answers, requests = descriptors
    if job["kind"] == "calls":
        job |= json.loads(wire.receive(0) or b"{}")
    stdin = _file_of(job.get("input", ""))
    nothing = os.open(os.devnull, os.O_RDWR)
    keep_only((stdin, out or nothing, nothing, answers or nothing, requests or nothing))
    os.environ.clear()
    os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd(), PATH="/nonexistent", LANG="C.UTF-8")
    lock_up(mode, limits)
    try:
        space: dict[str, Any] = {"__name__": "__main__" if job["kind"] == "stdin" else "solution"}
        exec(job.get("prelude", ""), space)
        usual = dict(space)
        try:
            exec(compile(job["program"], "solution.py", "exec"), space)
            if job["kind"] == "stdin":
                _join_threads()
        except SystemExit:  # a script may end so; a module that does has defined what it has defined
            pass
        if job["kind"] == "calls":
            for name, *arguments in job["calls"]:
                _answer(space, usual, name, [wire.decode(argument) for argument in arguments], {})
        elif job["kind"] == "tests":
            _serve(space, usual)
        sys.stdout.flush()
        return 0
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        sys.stdout.flush()
        return RAISED


def keep_only(descriptors: Sequence[int]) -> None:
    """Makes these the descriptors 0, 1, 2, ... of the process, and closes all others."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in descriptors]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number)
    os.closerange(len(high), min(os.sysconf("SC_OPEN_MAX"), 1 << 16))


def lock_up(mode: str, limits: dict[str, Any]) -> None:
    """Takes every right from this process, before it runs what it is not to be trusted with."""
    os.setsid()
    if mode == "bare":
        # The processes of the whole account count there, so any limit would be wrong.
        confine.limit({**limits, "processes": 1 << 20}, 0)
        return
    confine.limit(limits, 0 if mode == "root" else SANDBOX_PROCESSES)
    confine.drop_privileges(real_root=mode == "root")


def _file_of(text: str) -> int:
    """A descriptor to read the text from: a pipe would block on a long one."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("input")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    data = memoryview(text.encode())
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _join_threads() -> None:
    """As an interpreter does at its end: many solutions run in a thread with a larger stack."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()


def _serve(space: dict[str, Any], usual: dict[str, Any]) -> None:
    """Answers calls until the judge has no more."""
    with os.fdopen(_REQUESTS, "rb") as requests:
        for line in requests:
            name, arguments, named = wire.decode(line)
            _answer(space, usual, name, arguments, named)


def _answer(
    space: dict[str, Any], usual: dict[str, Any], name: str, arguments: Sequence[Any], named: dict[str, Any]
) -> None:
    try:
        line = '{"value": ' + wire.encode(_function(space, usual, name)(*arguments, **named)) + "}"
    except MemoryError:
        raise
    except BaseException as error:  # SystemExit too: the next call is another test
        line = json.dumps({"error": type(error).__name__})
    data = memoryview((line + "\n").encode())
    while data:
        data = data[os.write(_ANSWERS, data) :]


def _function(space: dict[str, Any], usual: dict[str, Any], name: str) -> Any:
    """A function of the program, or a method of its class `Solution`, as the data sets have it.

    Raises:
        NameError: The program has neither; what it was given to use is not its own.
    """
    if name in space and space[name] is not usual.get(name):
        return space[name]
    if "Solution" in space:
        return getattr(space["Solution"](), name)
    raise NameError(name)
