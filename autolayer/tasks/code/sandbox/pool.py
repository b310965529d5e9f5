"""Runs programs that a model wrote, and returns what they did. Nothing else in this package may run one.

`jobs.Limits` says what a program may use, `launch` what it can see, and `confine` what it can call. Expected values
stay out of its process: calls and outputs come back as plain data and are compared by the caller, and tests run in a
process of their own (`judge`). So leaving early, printing "all passed", patching the grader, writing to the result pipe
or returning an object that equals everything gains nothing. A reason such as 'timeout' describes the program. A failure
of the sandbox itself raises SandboxError and never becomes a score of 0.

Left out on purpose: defence against bugs of the kernel, for which a virtual machine is the answer.
"""

import json
import multiprocessing
import os
import queue
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from autolayer.core.errors import SandboxError
from autolayer.tasks.code.sandbox import protocol
from autolayer.tasks.code.sandbox.jobs import Calls, Job, Judged, Limits, Outcome, Script
from autolayer.tasks.code.sandbox.launch import ENVIRONMENT, Launcher

GRACE_SECONDS = 20.0  # beyond the limit that the sandbox itself keeps, before it counts as failed
MAX_HASHED = 4000  # items of a set or dictionary that a program may return


class Sandbox:
    """A few fork servers, started when first needed, each running one program at a time."""

    def __init__(self, launcher: Launcher, size: int | None = None) -> None:
        self.launcher = launcher
        self.owner = os.getpid()
        size = size or min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="autolayer-sandbox")
        self._servers: queue.SimpleQueue[ForkServer | None] = queue.SimpleQueue()
        for _ in range(size):
            self._servers.put(None)

    def run(self, jobs: Sequence[Job], limits: Limits | None = None) -> list[Outcome]:
        """Returns the outcome of each job. It is safe to call from any thread.

        Raises:
            SandboxError: The sandbox itself failed, twice on one program.
        """
        return list(self._threads.map(lambda job: self._run(job, limits or Limits()), jobs))

    def close(self) -> None:
        """Ends the fork servers."""
        if self.owner != os.getpid():
            return  # in a fork of ours, which does not own the processes
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._servers.empty():
            if server := self._servers.get():
                server.close()

    def _run(self, job: Job, limits: Limits) -> Outcome:
        for attempt in range(2):
            server, kept = self._servers.get(), None
            try:
                if server is not None and server.limits != limits:
                    server.close()
                    server = None
                server = server or ForkServer(self.launcher, limits)
                outcome, is_clean = server.run(job)
                kept = server if is_clean else None
                return outcome
            except SandboxFailure as failure:
                if attempt == 1:
                    raise SandboxError(
                        f"the sandbox failed twice on the same program: {failure}. This is no verdict on the program, "
                        "so the run ends here. If the machine is overloaded or out of memory, give it fewer jobs, and "
                        "rerun the same command to resume."
                    ) from failure
            finally:
                if server is not None and kept is None:
                    server.close()
                self._servers.put(kept)
        raise AssertionError("the second attempt returns or raises")


class SandboxFailure(Exception):
    """The fork server did not answer as it should."""


class ForkServer:
    """A `fork_server` process in a sandbox of its own, used by one thread at a time."""

    def __init__(self, launcher: Launcher, limits: Limits) -> None:
        self.limits = limits
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._scratch = None if launcher.is_sandbox else tempfile.TemporaryDirectory(prefix="autolayer-")
        self._connection, inside = multiprocessing.Pipe()
        try:
            self._process = subprocess.Popen(
                launcher.command,
                stdin=inside.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=ENVIRONMENT,
                cwd=self._scratch.name if self._scratch else "/",
                start_new_session=True,  # Ctrl-C is for the host to handle, and `kill` ends the whole group
            )
        except OSError as error:
            raise SandboxFailure(f"{launcher.command[0]}: {error.strerror}") from None
        finally:
            inside.close()
        self._is_new = True

    def run(self, job: Job) -> tuple[Outcome, bool]:
        """Runs one job.

        Returns:
            The outcome, and whether the server can take another job: False after a program that ran out of time or
            left something in the scratch folder.

        Raises:
            SandboxFailure: The server ended or does not answer.
        """
        limit = self.limits.wall_seconds + GRACE_SECONDS
        try:
            for frame in ([json.dumps(asdict(self.limits)).encode()] if self._is_new else []) + _frames(job):
                self._connection.send_bytes(frame)
            self._is_new = False
            if not self._connection.poll(limit):
                raise SandboxFailure(f"no answer in {limit:.0f} s")
            summary, result = json.loads(self._connection.recv_bytes()), self._connection.recv_bytes()
        except (EOFError, OSError):
            raise SandboxFailure(self._last_words()) from None
        return _outcome(job, summary["reason"], result), summary["is_clean"]

    def close(self) -> None:
        """Ends the process. An idle one ends when its connection closes."""
        self._connection.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self.kill()
        self._errors.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def kill(self) -> None:
        """Kills the process group."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except PermissionError:
            self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).strip().splitlines()
        return lines[-1] if lines else "it ended without a message"


def _frames(job: Job) -> list[bytes]:
    """Returns what the fork server is sent: the kind of the job, which it reads, and what only its children read."""
    if isinstance(job, Script):
        parts = ["script", {"program": job.program, "stdin": job.stdin}]
    elif isinstance(job, Judged):
        tests = {"tests": job.tests, "functions": job.functions, "setup": job.setup, "run_all": job.run_all}
        parts = ["tests", tests, {"program": job.program}]
    else:
        calls = [[name, *map(protocol.encode, arguments)] for name, arguments in job.calls]
        parts = ["calls", {"program": job.program, "prelude": job.prelude, "calls": calls}]
    return [(part if isinstance(part, str) else json.dumps(part)).encode() for part in parts]


def _outcome(job: Job, reason: str, result: bytes) -> Outcome:
    """Returns what the bytes say, which are not trusted. Whatever cannot be read is left out."""
    if isinstance(job, Script):
        return Outcome(reason=reason, stdout=result.decode("utf-8", "replace"))
    if isinstance(job, Calls):
        values = _values(result.split(b"\n")[: len(job.calls)])
        has_ended_early = len(values) < len(job.calls)
        return Outcome(reason="crash" if reason == "ok" and has_ended_early else reason, values=values)
    try:
        passed = tuple(verdict is True for verdict in json.loads(result))[: len(job.tests)]
    except (ValueError, TypeError):  # the judge was ended before it could write
        passed = ()
    has_ended_early = all(passed) and len(passed) < len(job.tests)
    return Outcome(reason="crash" if reason == "ok" and has_ended_early else reason, passed=passed)


def _values(lines: Sequence[bytes]) -> tuple[Any, ...]:
    values: list[Any] = []
    for line in lines:
        try:
            values.append(protocol.decode(line, max_hashed=MAX_HASHED))
        except ValueError:
            break
    return tuple(values)
