"""Runs programs that a model wrote, and returns what they did. Nothing else here may run one.

What a program may use is in `limits`, what it can see in `launch`, what it can call in `confine`. Expected values stay
out of its process: calls and outputs come back as plain data and are compared by the caller, and tests run in a process
of their own (`judge`). So leaving early, printing "all passed", patching the grader, writing to the result pipe or
returning an object that equals everything gains nothing. A reason such as 'timeout' describes the program; a sandbox
that fails itself is a SandboxError, never a zero.

Left out on purpose: defence against bugs of the kernel, for which a virtual machine is the answer.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from autolayer.core.errors import SandboxError
from autolayer.tasks.code import launch, wire
from autolayer.tasks.code.jobs import Calls, Job, opening_frames, outcome_of, program_frame
from autolayer.tasks.code.launch import Launcher
from autolayer.tasks.code.limits import Limits, Outcome

GRACE_SECONDS = 20.0  # beyond the limit that the sandbox itself keeps, before it counts as failed
BATCH = 64  # programs for which namespaces are made once


class Sandbox:
    """A few sandboxed processes, started when first needed, each running one program at a time."""

    def __init__(self, launcher: Launcher, size: int | None = None) -> None:
        self.launcher = launcher
        self.owner = os.getpid()
        self.size = size or min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="autolayer-sandbox")
        self._workers: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(self.size):
            self._workers.put(None)

    def run(self, jobs: Sequence[Job], limits: Limits | None = None) -> list[Outcome]:
        """What came of each job. Safe to call from any thread.

        Raises:
            SandboxError: The sandbox itself failed, twice.
        """
        limits = limits or Limits()
        batches = _batches(jobs, self.size)
        found: dict[int, Outcome] = {}
        done = self._threads.map(lambda batch: self._run([jobs[i] for i in batch], limits), batches)
        for batch, outcomes in zip(batches, done, strict=True):
            found.update(zip(batch, outcomes, strict=True))
        return [found[i] for i in range(len(jobs))]

    def close(self) -> None:
        if self.owner != os.getpid():
            return  # a fork of ours has come to its end: the processes are not its own
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._workers.empty():
            if worker := self._workers.get():
                worker.close()

    def _run(self, jobs: Sequence[Job], limits: Limits) -> list[Outcome]:
        """Outcomes of a batch: many `Calls`, or one job of another kind."""
        found: list[Outcome] = []
        failures = 0
        worker = self._workers.get()
        try:
            while len(found) < len(jobs):
                try:
                    worker = worker or Worker(self.launcher)
                    for outcome in worker.ask(jobs[len(found) :], limits):
                        found.append(outcome)
                        failures = 0
                except Failure as failure:
                    if worker is not None:
                        worker.close()
                    worker = None
                    failures += 1
                    if failures == 2:
                        raise SandboxError(
                            f"the sandbox ({self.launcher.name}) failed twice on the same program: {failure}. This is "
                            "no verdict on the program, so the run ends here. If the machine is overloaded or out of "
                            "memory, give it fewer jobs; the same command goes on from where it stopped."
                        ) from failure
        except BaseException:
            if worker is not None:  # it may be in the middle of a batch, and would answer for another program
                worker.close()
                worker = None
            raise
        finally:
            self._workers.put(worker)
        return found


class Failure(Exception):
    """The sandbox did not answer as it should."""


@dataclass
class Worker:
    """One zygote, asked by one thread at a time."""

    launcher: Launcher
    _errors: Any = field(init=False)
    _process: subprocess.Popen = field(init=False)

    def __post_init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self.launcher.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=launch.ENVIRONMENT,
                cwd="/",
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours to handle, and `close` ends the whole group
            )
        except OSError as error:
            raise Failure(f"{self.launcher.command[0]}: {error.strerror}") from None

    def ask(self, jobs: Sequence[Job], limits: Limits) -> Iterator[Outcome]:
        """Yields outcomes in the order of the jobs; all of them, or as many as one set of namespaces was good for."""
        assert self._process.stdin is not None and self._process.stdout is not None, "opened with pipes"
        to_it, from_it = self._process.stdin.fileno(), self._process.stdout.fileno()
        late = threading.Event()
        limit = len(jobs) * limits.wall_seconds + GRACE_SECONDS
        timer = threading.Timer(limit, lambda: (late.set(), self._kill()))
        timer.start()
        try:
            for frame in opening_frames(jobs, limits):
                wire.send(to_it, frame)
            for job in jobs:
                if isinstance(job, Calls):
                    wire.send(to_it, program_frame(job))
                summary, result = wire.receive(from_it), wire.receive(from_it)
                if summary is None or result is None:
                    raise OSError("it ended")
                found = json.loads(summary)
                if found["reason"] == "broken":
                    raise Failure(f"{result.decode()}: {self._last_words()}")
                yield outcome_of(job, found["reason"], result)
                if not found["more"]:
                    return
        except OSError:
            raise Failure(f"no answer in {limit:.0f} s" if late.is_set() else self._last_words()) from None
        finally:
            timer.cancel()

    def close(self) -> None:
        assert self._process.stdin is not None, "opened with pipes"
        self._process.stdin.close()
        try:
            self._process.wait(1)  # an idle zygote ends with its stdin, and tidies up
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        for stream in (self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def _batches(jobs: Sequence[Job], num_workers: int) -> list[list[int]]:
    """Positions of jobs that are asked about together."""
    calls = [i for i, job in enumerate(jobs) if isinstance(job, Calls)]
    others = [[i] for i, job in enumerate(jobs) if not isinstance(job, Calls)]
    size = min(BATCH, -(-len(calls) // num_workers)) or 1
    return [calls[start : start + size] for start in range(0, len(calls), size)] + others
