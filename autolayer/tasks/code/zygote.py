"""The process inside the sandbox that forks a child for every program, and watches it.

The zygote never reads a job: for each it forks a supervisor, which reads the job from stdin, runs it in a PID and a
mount namespace of its own with an empty scratch folder, and writes what came of it to stdout. So a program cannot see
the supervisor, and what it leaves behind ends with its namespace. The tests of a job, with the expected values in them,
are read by a process of their own (`judge`) and by nobody else. A job of many programs (kind 'batch') makes the
namespaces once: each program is read by a process of its own, and all that it started is ended before the next begins.

Standard library only, and no import of ours but what lies beside it: it runs where nothing else is mounted.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

from autolayer.tasks.code import child, judge, wire

NO_MORE_JOBS = 3  # exit status of a supervisor that found the end of stdin
SCRATCH = "/tmp"
PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math",
    "operator", "random", "re", "statistics", "string", "threading", "typing",
)  # fmt: skip
"""What solutions like to import: once here, and no more in every child."""

_NEW_MOUNTS, _NEW_PIDS, _NO_SUID_NO_DEVICES = 0x20000, 0x20000000, 6


def main(mode: str) -> None:
    """Runs jobs until stdin ends.

    Args:
        mode: 'user' (in a user namespace), 'root' (started by root, without one) or 'bare' (no sandbox).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    while True:
        select.select([0], [], [])
        pid = os.fork()
        if pid == 0:
            _exit_after(_supervise, mode)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if mode != "bare":
            _end_everything_else()
        if status == NO_MORE_JOBS:
            return
        if status != 0:
            _send("broken", f"the supervisor ended with status {status}".encode())


def _exit_after(function: Any, *arguments: Any) -> None:
    """What a forked process does: this, and nothing of its parent's."""
    status = 1
    try:
        status = function(*arguments) or 0
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


def _end_everything_else() -> None:
    """As init of the PID namespace: whatever the job left behind."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _supervise(mode: str) -> int:
    frame = wire.receive(0)
    if frame is None:
        return NO_MORE_JOBS
    job = json.loads(frame)
    limits = {**job["limits"], "sandboxed": mode != "bare"}
    if job["kind"] != "batch":
        _send(*_run(mode, job, limits))
        return 0
    folder = _fresh_scratch(mode, limits)
    pid = os.fork()
    if pid == 0:
        _exit_after(_run_batch, mode, job["num"], limits, folder)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if mode == "bare":
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _send(reason: str, result: bytes, more: bool = False) -> None:
    """Answers for one program. `more`: another one of the batch may follow."""
    wire.send(1, json.dumps({"reason": reason, "more": more}).encode())
    wire.send(1, result)


def _run(mode: str, job: dict[str, Any], limits: dict[str, Any], folder: str | None = None) -> tuple[str, bytes]:
    """Runs one program, in the namespaces of `folder` or else in new ones, and returns the reason and its results."""
    printed, child_out = os.pipe()
    answers, child_answers = os.pipe()
    requests = judge_pid = None
    if job["kind"] == "tests":
        # Forked before the program's own namespaces are made, and out of its sight.
        requests, judge_requests = os.pipe()
        verdict, judge_verdict = os.pipe()
        judge_pid = os.fork()
        if judge_pid == 0:
            _exit_after(judge.run, mode, limits, (0, judge_verdict, judge_requests, answers))
        for descriptor in (judge_verdict, judge_requests, answers):
            os.close(descriptor)
        answers = verdict
    own_folder = None if folder else _fresh_scratch(mode, limits)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder or own_folder or "/")
        _exit_after(child.run, mode, job, limits, (child_out, child_answers, requests))
    for descriptor in filter(None, (child_out, child_answers, requests)):
        os.close(descriptor)
    streams = {printed: bytearray(), answers: bytearray()}
    reason = _watch(pid, judge_pid, mode, streams, limits)
    for descriptor in streams:
        os.close(descriptor)
    if mode == "bare" and own_folder:
        shutil.rmtree(own_folder, ignore_errors=True)
    return reason, bytes(streams[printed if job["kind"] == "stdin" else answers])


def _run_batch(mode: str, num: int, limits: dict[str, Any], folder: str) -> None:
    """Runs programs one after the other, as init of their PID namespace.

    Until one leaves something in the folder, or runs out of time: it may not have read all of its frame.
    """
    fresh = _traces(folder)
    for left in reversed(range(num)):
        reason, result = _run(mode, {"kind": "calls"}, limits, folder)
        if mode != "bare":
            _end_everything_else()
        more = left > 0 and reason != "timeout" and _traces(folder) == fresh
        _send(reason, result, more)
        if not more:
            return


def _traces(folder: str) -> tuple[Any, ...]:
    """What a program could leave for the next one: files, attributes of the folder, its mode and owner."""
    found = os.stat(folder)
    attributes = os.listxattr(folder) if hasattr(os, "listxattr") else []
    return sorted(os.listdir(folder)), attributes, found.st_mode, found.st_uid, found.st_gid


def _fresh_scratch(mode: str, limits: dict[str, Any]) -> str:
    """An empty folder, the only one that can be written to; children forked from here on are in namespaces of it."""
    if mode == "bare":
        return tempfile.mkdtemp(prefix="autolayer-")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={limits['scratch']},nr_inodes={limits['files']},mode=777".encode()
    for failed, what in (
        (libc.unshare(_NEW_MOUNTS | _NEW_PIDS), "new namespaces"),
        (
            libc.mount(b"scratch", SCRATCH.encode(), b"tmpfs", _NO_SUID_NO_DEVICES, options),
            "mounting the scratch folder",
        ),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return SCRATCH


def _watch(pid: int, judge_pid: int | None, mode: str, streams: dict[int, bytearray], limits: dict[str, Any]) -> str:
    """Reads into `streams` until the job (its judge, if it has one) has ended or a limit is passed; ends it then.

    Returns:
        'ok', or why the job did not run to its end: 'error', 'timeout', 'memory', 'output' or 'crash'.
    """
    deadline = time.monotonic() + limits["wall_seconds"]
    awaited, passed = judge_pid or pid, None
    ended: dict[int, Any] = {}  # status and usage
    still_open = set(streams)
    while passed is None:
        pause = 0.02 if still_open and not ended else 0
        ready = select.select(list(still_open), [], [], pause)[0]
        for descriptor in ready:
            part = os.read(descriptor, 1 << 16)
            streams[descriptor] += part
            if not part:
                still_open.discard(descriptor)
            if len(streams[descriptor]) > limits["output"]:
                passed = "output"
        if not ready:
            if ended:  # a pipe that is open now is held by a survivor, where there is no sandbox
                break
            if not still_open:
                time.sleep(0.0005)
            number, status, usage = os.wait4(awaited, os.WNOHANG)
            ended |= {number: (status, usage)} if number else {}
        if time.monotonic() > deadline and not ended:
            passed = "timeout"
    for other in filter(None, (judge_pid, pid)):
        _kill(other, mode, has_ended=other in ended)
        if other not in ended:
            _, status, usage = os.wait4(other, 0)
            ended[other] = (status, usage)
    status, usage = ended[pid]
    seconds = usage.ru_utime + usage.ru_stime
    return passed or _reason(os.waitstatus_to_exitcode(status), seconds, limits, was_killed=judge_pid is not None)


def _kill(pid: int, mode: str, has_ended: bool) -> None:
    """Ends a process with all that it started: as init of a namespace, or else as the leader of a group."""
    for end in ([os.killpg] if mode == "bare" else []) + ([] if has_ended else [os.kill]):
        try:
            end(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _reason(status: int, seconds: float, limits: dict[str, Any], was_killed: bool) -> str:
    """What an exit status means. A job can choose its own, so this is for people to read: no reward hangs on it."""
    known = {0: "ok", child.RAISED: "error", child.OUT_OF_MEMORY: "memory"}
    known |= {-signal.SIGXFSZ: "output", -signal.SIGXCPU: "timeout"}
    if status == -signal.SIGKILL:
        if seconds >= 0.9 * max(1, round(limits["seconds"])):
            return "timeout"
        return "ok" if was_killed else "memory"
    return known.get(status, "crash")
