"""Runs programs that a model wrote, and returns what they did. Nothing else in this package may run one.

`jobs.Limits` says what a program may use, `bubblewrap` what it can see, and `confine` what it can call. Expected values
stay out of its process: outputs come back as JSON and are compared by the caller, and tests run in a process of their
own (`judge`). So leaving early, printing "all passed", patching the grader or returning an object equal to everything
gains nothing. A failure of the sandbox itself raises SandboxError and never becomes a score of 0. Left out on purpose:
defence against bugs of the kernel, for which a virtual machine is the answer.
"""

import json
import multiprocessing
import os
import queue
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from autolayer.core.errors import SandboxError
from autolayer.tasks.code.sandbox.bubblewrap import ENVIRONMENT
from autolayer.tasks.code.sandbox.jobs import Calls, Failed, Job, Judged, Limits, Outcome, Script

GRACE_SECONDS = 20.0  # beyond the limit that the sandbox itself keeps, before it counts as failed
_KINDS = {Script: "script", Judged: "tests", Calls: "calls"}


class Sandbox:
    """A few fork servers, started when first needed, each running one program at a time."""

    def __init__(self, command: list[str], size: int | None = None) -> None:
        self.command = command
        self.owner = os.getpid()
        size = size or min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="autolayer-sandbox")
        self._servers: queue.SimpleQueue[ForkServer] = queue.SimpleQueue()
        for _ in range(size):
            self._servers.put(ForkServer(command))

    def run(self, jobs: Sequence[Job], limits: Limits | None = None) -> list[Outcome]:
        """Returns the outcome of each job. It is safe to call from any thread."""
        return list(self._threads.map(lambda job: self._run(job, limits or Limits()), jobs))

    def close(self) -> None:
        """Ends the fork servers."""
        if self.owner != os.getpid():
            return  # in a fork of ours, which does not own the processes
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._servers.empty():
            self._servers.get().close()

    def _run(self, job: Job, limits: Limits) -> Outcome:
        server = self._servers.get()
        try:
            try:
                return server.run(job, limits)
            except SandboxFailure:  # once may be an accident
                return server.run(job, limits)
        except SandboxFailure as failure:
            raise SandboxError(
                f"the sandbox failed twice on the same program: {failure}. This is no verdict on the program, so the "
                "run ends here. If the machine is overloaded or out of memory, give it fewer jobs, and rerun the same "
                "command to resume."
            ) from failure
        finally:
            self._servers.put(server)


class SandboxFailure(Exception):
    """The fork server did not answer as it should."""


class ForkServer:
    """A `fork_server` process in a sandbox of its own, used by one thread at a time."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, job: Job, limits: Limits) -> Outcome:
        """Runs one job, in a new process if there is none. Raises `SandboxFailure` if the process does not answer."""
        if self.process is None:
            self._start()
        reason: str | None = None
        try:
            # The fork server reads the first part itself, and the job is read by the processes that it forks.
            for part in ({"kind": _KINDS[type(job)], "limits": vars(limits)}, vars(job)):
                self._connection.send_bytes(json.dumps(part).encode())
            if not self._connection.poll(limits.wall_seconds + GRACE_SECONDS):
                raise SandboxFailure(f"no answer in {limits.wall_seconds + GRACE_SECONDS:.0f} s")
            reason, result = self._connection.recv_bytes().decode(), self._connection.recv_bytes()
            return _outcome(job, reason, result)
        except (EOFError, OSError):
            raise SandboxFailure(self._last_words()) from None
        finally:
            if reason in (None, "timeout"):  # a program that was ended may have left its frame unread
                self.close()

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self.process is None:
            return
        self._connection.close()  # an idle one ends by this
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except PermissionError:
                self.process.kill()
            self.process.wait()
        self._errors.close()
        self.process = None

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._connection, inside = multiprocessing.Pipe()
        with inside:
            try:
                self.process = subprocess.Popen(
                    self._command,
                    stdin=inside.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    env=ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for the host to handle, and `close` ends the whole group
                )
            except OSError as error:
                raise SandboxFailure(f"{self._command[0]}: {error.strerror}") from None

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).strip().splitlines()
        return lines[-1] if lines else "it ended without a message"


def _outcome(job: Job, reason: str, result: bytes) -> Outcome:
    """Returns what the bytes say, which are not trusted. Whatever cannot be read is left out."""
    if isinstance(job, Script):
        return Outcome(reason=reason, stdout=result.decode("utf-8", "replace"))
    if isinstance(job, Calls):
        values = tuple(_values(result.split(b"\n")[: len(job.calls)]))
        outcome, has_ended_early = Outcome(reason=reason, values=values), len(values) < len(job.calls)
    else:
        passed = tuple(json.loads(result or b"[]"))  # by the judge, which may have been ended before it could write
        outcome = Outcome(reason=reason, passed=passed)
        has_ended_early = all(passed) and len(passed) < len(job.tests)
    return replace(outcome, reason="crash") if reason == "ok" and has_ended_early else outcome


def _values(lines: Sequence[bytes]) -> Iterator[Any]:
    for line in lines:
        try:
            error, value = json.loads(line)
        except (ValueError, TypeError, RecursionError):  # forged, or an integer of more digits than Python reads
            return
        yield value if error is None else Failed(str(error))
