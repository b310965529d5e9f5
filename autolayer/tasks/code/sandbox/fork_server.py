"""The first process inside the sandbox: it forks a process for every program, watches it, and ends what it left behind.

The fork server never reads a program or a test. The process that runs a program reads it from the host's connection
itself, and the tests of a `Judged` job, which hold the expected values, are read by a process of their own (`judge`).
So no program finds another one, or the values it is judged by, in its memory. The server is PID 1 of its namespace, so
it can end every process before the next program starts. If a program changes the scratch folder, the host replaces the
whole sandbox.

Python's standard library and the modules beside this one are all that can be imported here.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from autolayer.tasks.code.sandbox import child, judge

SCRATCH = "/tmp"
PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math",
    "operator", "random", "re", "statistics", "string", "threading", "typing",
)  # fmt: skip
"""Modules that programs often import: loaded once here, and not again in every child."""

_NO_SUID_NO_DEVICES = 6


def main(mode: str) -> None:
    """Runs jobs until the host closes the connection, which is file descriptor 0.

    Args:
        mode: 'user' (in a user namespace), 'root' (started by root, without one) or 'bare' (no sandbox).
    """
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    host = Connection(0)
    try:
        limits = json.loads(host.recv_bytes())
        if mode != "bare":
            _mount_scratch(limits)
        fresh = _scratch_state()
        while True:
            reason, result = _run(host, host.recv_bytes().decode(), mode, limits)
            # After a timeout the child may not have read all of its frame.
            is_clean = reason != "timeout" and _scratch_state() == fresh
            host.send_bytes(json.dumps({"reason": reason, "is_clean": is_clean}).encode())
            host.send_bytes(result)
    except EOFError:
        return


def _mount_scratch(limits: dict[str, Any]) -> None:
    """Mounts the only folder that can be written to. bubblewrap's --tmpfs does not limit the number of files."""
    options = f"size={limits['scratch']},nr_inodes={limits['files']},mode=777".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"scratch", SCRATCH.encode(), b"tmpfs", _NO_SUID_NO_DEVICES, options):
        raise OSError(ctypes.get_errno(), f"mounting the scratch folder: {os.strerror(ctypes.get_errno())}")
    os.chdir(SCRATCH)


def _scratch_state() -> tuple[Any, ...]:
    """Returns what a program can change in the scratch folder: its files, attributes, mode and owner."""
    found = os.stat(".")
    attributes = os.listxattr(".") if hasattr(os, "listxattr") else []
    return sorted(os.listdir(".")), attributes, found.st_mode, found.st_uid, found.st_gid


def _run(host: Connection, kind: str, mode: str, limits: dict[str, Any]) -> tuple[str, bytes]:
    """Runs one job and returns the reason for its end and its result.

    Args:
        host: The connection from which the forked processes read their frames.
        kind: 'calls', 'script' or 'tests'.
        mode: As in `main`.
        limits: The fields of `jobs.Limits`.
    """
    result, result_end = os.pipe()
    judge_pid = None
    descriptors: tuple[int | None, ...] = (result_end, None, None) if kind == "script" else (None, result_end, None)
    if kind == "tests":
        answers, answers_end = os.pipe()
        calls, calls_end = os.pipe()
        judge_pid = _fork(judge.run, host, mode, limits, (result_end, calls_end, answers))
        for descriptor in (result_end, calls_end, answers):
            os.close(descriptor)
        os.read(result, 1)  # the judge has read its frame, so that the program's is next
        descriptors = (None, answers_end, calls)
    pid = _fork(child.run, host, kind, mode, limits, descriptors)
    for descriptor in filter(None, descriptors):
        os.close(descriptor)
    awaited = judge_pid or pid
    exceeded, found, ended = _collect(result, awaited, limits)
    os.close(result)
    _end_all(mode, judge_pid, pid, ended=awaited if ended else None)
    if ended is None or judge_pid:
        ended = os.wait4(pid, 0)[1:]
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    status, usage = ended
    return exceeded or _reason(status, usage, limits, was_killed=judge_pid is not None), found


def _fork(function: Callable[..., int], *arguments: Any) -> int:
    """Forks a process that runs the function and exits with its result."""
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        status = function(*arguments)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _collect(stream: int, awaited: int, limits: dict[str, Any]) -> tuple[str | None, bytes, Any]:
    """Reads the stream until the awaited process ends or a limit is exceeded.

    Returns:
        The exceeded limit ('output' or 'timeout') or None, the bytes read, and the status and resource usage of the
        process or None if it has not ended.
    """
    deadline = time.monotonic() + limits["wall_seconds"]
    found, is_open = bytearray(), [stream]
    while True:
        if select.select(is_open, [], [], 0.02 if is_open else 0.0005)[0]:
            part = os.read(stream, 1 << 16)
            found += part
            if len(found) > limits["output"]:
                return "output", bytes(found), None
            if not part:
                is_open = []
        else:  # without a sandbox, a process that outlives the program may hold the stream open
            number, *ended = os.wait4(awaited, os.WNOHANG)
            if number:
                return None, bytes(found), ended
        if time.monotonic() > deadline:
            return "timeout", bytes(found), None


def _end_all(mode: str, *pids: int | None, ended: int | None) -> None:
    """Kills every other process in the namespace. Without a sandbox, kills these processes and their groups."""
    targets: list[Any] = [(os.kill, -1)]
    if mode == "bare":
        targets = [(os.killpg, pid) for pid in pids if pid] + [(os.kill, pid) for pid in pids if pid and pid != ended]
    for kill, target in targets:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)


def _reason(status: int, usage: Any, limits: dict[str, Any], was_killed: bool) -> str:
    """Returns what an exit status means. A program can choose its own, so no reward depends on it."""
    code = os.waitstatus_to_exitcode(status)
    known = {0: "ok", child.RAISED: "error", child.OUT_OF_MEMORY: "memory"}
    known |= {-signal.SIGXFSZ: "output", -signal.SIGXCPU: "timeout"}
    if code == -signal.SIGKILL:
        if usage.ru_utime + usage.ru_stime >= 0.9 * max(1, round(limits["seconds"])):
            return "timeout"
        return "ok" if was_killed else "memory"
    return known.get(code, "crash")
