"""The first process inside the sandbox: it forks a process for every program, watches it, and kills what is left of it.

The fork server never reads a program or a test. The process that runs a program reads it from the host's connection
itself. The tests of a `Judged` job, which hold the expected values, are read by a process of their own (`judge`), which
passes the program on. So no program finds another one, or the values it is judged by, in its memory. The server is
PID 1 of its namespace, so it can end every process before the next program starts, and it mounts a new scratch folder
for each, the only place that can be written to.

Python's standard library and the modules beside this one are all that can be imported here.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any

from autolayer.tasks.code.sandbox import child, confine, judge

SCRATCH = "/tmp"
PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math",
    "operator", "random", "re", "statistics", "string", "threading", "typing",
)  # fmt: skip
"""Modules that programs often import: loaded once here, and not again in every child."""

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096  # flags of mount
_DETACH = 2  # of umount2


def main(mode: str) -> None:
    """Runs jobs until the host closes the connection, which is file descriptor 0.

    The mode is 'user' (in a user namespace), 'root' (started by root, without one) or 'bare' (no sandbox, only limits).
    """
    for name in PRELOADED:
        importlib.import_module(name)
    if mode != "bare":
        for device in os.listdir("/dev"):  # or a program could change their times; bubblewrap would close them
            _mount(b"", f"/dev/{device}", _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_EXEC)
    gc.freeze()
    host = Connection(0)
    with contextlib.suppress(EOFError):
        while True:
            header = json.loads(host.recv_bytes())
            with _scratch_folder(mode, header["limits"]):
                reason, result = _run(host, header["kind"], mode, header["limits"])
            host.send_bytes(reason.encode())
            host.send_bytes(result)


@contextlib.contextmanager
def _scratch_folder(mode: str, limits: dict[str, Any]) -> Iterator[None]:
    """Makes a new folder the current one. Even the times of an old one would tell a program about the one before."""
    if mode == "bare":
        with tempfile.TemporaryDirectory(prefix="autolayer-", ignore_cleanup_errors=True) as folder:
            os.chdir(folder)
            yield
            os.chdir("/")
        return
    # bubblewrap's --tmpfs does not limit the number of files.
    options = f"size={limits['scratch']},nr_inodes={limits['files']},mode=777"
    _mount(b"tmpfs", SCRATCH, _NO_SUID | _NO_DEVICES, options)
    os.chdir(SCRATCH)
    yield
    os.chdir("/")
    confine.call("umount2", SCRATCH.encode(), _DETACH)


def _mount(kind: bytes, folder: str, flags: int, options: str = "") -> None:
    confine.call("mount", b"scratch", folder.encode(), kind, flags, options.encode())


def _run(host: Connection, kind: str, mode: str, limits: dict[str, Any]) -> tuple[str, bytes]:
    """Runs one job, which the forked processes read from the host. Returns why it ended, and its result."""
    has_timed_out = False

    def end(*_: Any) -> None:
        nonlocal has_timed_out
        has_timed_out = True
        _kill(mode, pids)

    with tempfile.TemporaryFile(dir=".", buffering=0) as result:
        if kind == "tests":
            to_judge, to_program = Pipe()
            with to_judge, to_program:
                pids = [
                    _fork(judge.run_judge, host, to_program, result.fileno(), mode, limits),
                    _fork(child.run_child, to_judge, result.fileno(), kind, mode, limits),
                ]
        else:
            pids = [_fork(child.run_child, host, result.fileno(), kind, mode, limits)]
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"])
        statuses = [os.waitpid(pids[0], 0)[1]]
        signal.setitimer(signal.ITIMER_REAL, 0)
        _kill(mode, pids)
        statuses += [os.waitpid(pid, 0)[1] for pid in pids[1:]]
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        result.seek(0)
        found = result.read(limits["output"])
    if has_timed_out:
        return "timeout", found
    if len(found) == limits["output"]:
        return "output", found
    reasons = [_reason(status, was_killed=index > 0) for index, status in enumerate(statuses)]
    return next((reason for reason in reasons if reason != "ok"), "ok"), found


def _fork(function: Callable[..., int], *arguments: Any) -> int:
    """Forks a process, in a process group of its own, that runs the function and exits with its result."""
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        status = function(*arguments)
    finally:
        os._exit(status)


def _kill(mode: str, pids: list[int]) -> None:
    """Kills every other process in the namespace. Without a sandbox, kills the groups of these processes."""
    for pid in pids if mode == "bare" else [-1]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.killpg if mode == "bare" else os.kill)(pid, signal.SIGKILL)


def _reason(status: int, was_killed: bool) -> str:
    """Returns what an exit status means. A program can choose its own, so no reward depends on it."""
    known = {0: "ok", child.RAISED: "error", child.OUT_OF_MEMORY: "memory", -signal.SIGXCPU: "timeout"}
    known[-signal.SIGKILL] = "ok" if was_killed else "memory"
    return known.get(os.waitstatus_to_exitcode(status), "crash")
