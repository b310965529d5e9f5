"""Runs programs that a model wrote, and returns what they did. Nothing else here may run one.

What a program may use is in `limits`, what it can see in `launch`, what it can call in `confine`. Expected values stay
out of its process: calls and outputs come back as plain data and are compared by the caller, and tests run in a process
of their own (`judge`). So leaving early, printing "all passed", patching the grader, writing to the result pipe or
returning an object that equals everything gains nothing. A reason such as 'timeout' describes the program; a sandbox
that fails itself is a SandboxError, never a zero.

Left out on purpose: defence against bugs of the kernel, for which a virtual machine is the answer.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from autolayer.errors import SandboxError
from autolayer.tasks.code import launch, wire
from autolayer.tasks.code.launch import Launcher
from autolayer.tasks.code.limits import Failed, Limits, Outcome

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # on a machine that is busy; it takes a tenth of one
GRACE_SECONDS = 20.0  # beyond the limit that the sandbox itself keeps, before it counts as failed
BATCH = 64  # programs for which namespaces are made once


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A program, and calls of its functions."""

    program: str
    calls: Sequence[tuple[str, Sequence[Any]]]
    """Name of the function and its arguments, which must be plain data."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """A program that reads standard input and prints."""

    program: str
    stdin: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A program, and tests of it that are Python themselves."""

    program: str
    tests: Sequence[str]
    functions: Sequence[str]
    """Names that the tests use and the program defines."""
    setup: str = ""
    """Run before the tests, where the program cannot see it."""
    run_all: bool = False
    """Whether tests go on after one has failed."""


class Sandbox:
    """A few sandboxed processes, started when first needed, each running one program at a time."""

    def __init__(self, launcher: Launcher, size: int | None = None) -> None:
        self.launcher = launcher
        self.owner = os.getpid()
        self.size = size or min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="autolayer-sandbox")
        self._workers: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        for _ in range(self.size):
            self._workers.put(None)

    def run(self, jobs: Sequence[Calls | Script | Judged], limits: Limits | None = None) -> list[Outcome]:
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

    def _run(self, jobs: Sequence[Calls | Script | Judged], limits: Limits) -> list[Outcome]:
        """Outcomes of a batch: many `Calls`, or one job of another kind."""
        found: list[Outcome] = []
        failures = 0
        worker = self._workers.get()
        try:
            while len(found) < len(jobs):
                try:
                    worker = worker or _Worker(self.launcher)
                    for outcome in worker.ask(jobs[len(found) :], limits):
                        found.append(outcome)
                        failures = 0
                except _Failure as failure:
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
        finally:
            self._workers.put(worker)
        return found


class _Failure(Exception):
    """The sandbox did not answer as it should."""


@dataclass
class _Worker:
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
            raise _Failure(f"{self.launcher.command[0]}: {error.strerror}") from None

    def ask(self, jobs: Sequence[Calls | Script | Judged], limits: Limits) -> Iterator[Outcome]:
        """Yields outcomes in the order of the jobs; all of them, or as many as one set of namespaces was good for."""
        assert self._process.stdin is not None and self._process.stdout is not None, "opened with pipes"
        to_it, from_it = self._process.stdin.fileno(), self._process.stdout.fileno()
        late = threading.Event()
        limit = len(jobs) * limits.wall_seconds + GRACE_SECONDS
        timer = threading.Timer(limit, lambda: (late.set(), self._kill()))
        timer.start()
        try:
            for frame in _frames(jobs, limits):
                wire.send(to_it, frame)
            for job in jobs:
                summary, result = wire.receive(from_it), wire.receive(from_it)
                if summary is None or result is None:
                    raise OSError("it ended")
                reason = json.loads(summary)["reason"]
                if reason == "used up":
                    return
                if reason == "broken":
                    raise _Failure(f"{result.decode()}: {self._last_words()}")
                yield _outcome(job, reason, result)
        except OSError:
            raise _Failure(f"no answer in {limit:.0f} s" if late.is_set() else self._last_words()) from None
        finally:
            timer.cancel()

    def close(self) -> None:
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
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


def _batches(jobs: Sequence[Calls | Script | Judged], num_workers: int) -> list[list[int]]:
    """Positions of jobs that are asked about together."""
    calls = [i for i, job in enumerate(jobs) if isinstance(job, Calls)]
    others = [[i] for i, job in enumerate(jobs) if not isinstance(job, Calls)]
    size = min(BATCH, -(-len(calls) // num_workers)) or 1
    return [calls[start : start + size] for start in range(0, len(calls), size)] + others


def _frames(jobs: Sequence[Calls | Script | Judged], limits: Limits) -> list[bytes]:
    """What the zygote is sent. The tests are a frame of their own, which only the judge reads."""
    (job, *_), shared = jobs, {"limits": asdict(limits)}
    if isinstance(job, Script):
        frames = [{"kind": "stdin", "program": job.program, "input": job.stdin, **shared}]
    elif isinstance(job, Judged):
        tests = {"tests": job.tests, "functions": job.functions, "setup": job.setup, "all": job.run_all}
        frames = [{"kind": "tests", "program": job.program, **shared}, tests]
    else:
        programs = [
            {"program": j.program, "calls": [[name, *map(wire.encode, arguments)] for name, arguments in j.calls]}
            for j in jobs
            if isinstance(j, Calls)
        ]
        frames = [{"kind": "batch", "programs": programs, **shared}]
    return [json.dumps(frame).encode() for frame in frames]


def _outcome(job: Calls | Script | Judged, reason: str, result: bytes) -> Outcome:
    """What the untrusted bytes say; whatever cannot be read is left out."""
    if isinstance(job, Script):
        return Outcome(reason=reason, stdout=result.decode("utf-8", "replace"))
    if isinstance(job, Judged):
        passed = _verdict(result)[: len(job.tests)]
        missing = reason == "ok" and (len(passed) < len(job.tests) and all(passed))
        return Outcome(reason="crash" if missing else reason, passed=passed)
    values: list[Any] = []
    for line in result.split(b"\n")[: len(job.calls)]:
        try:
            if line.startswith(b'{"value": ') and line.endswith(b"}"):
                values.append(wire.decode(line[len(b'{"value": ') : -1]))
            else:
                values.append(Failed(str(json.loads(line)["error"])[:100]))
        except (ValueError, TypeError, KeyError, RecursionError):
            break
    ended_early = reason == "ok" and len(values) < len(job.calls)
    return Outcome(reason="crash" if ended_early else reason, values=tuple(values))


def _verdict(result: bytes) -> tuple[bool, ...]:
    """What the judge said; nothing, if it was ended before it could."""
    try:
        return tuple(passed is True for passed in json.loads(result))
    except (ValueError, TypeError):
        return ()


_TRIAL = """
import os, socket
def look(folder):
    try:
        socket.socket()
    except OSError:
        return [os.path.exists(folder), os.getpid(), len(os.environ) < 6]
    return "a socket could be opened"
"""
_open: dict[bool, Sandbox] = {}
_open_lock = threading.Lock()


def open_sandbox(*, allow_unsandboxed: bool = False) -> Sandbox:
    """This process's sandbox: the first way that works here, found out once by a trial.

    Args:
        allow_unsandboxed: Where there is no sandbox, run programs in a child with limits and nothing else.

    Raises:
        SandboxError: There is none, and that is not allowed.
    """
    with _open_lock:
        found = _open.get(allow_unsandboxed)
        # After a fork the parent's is left alone: its pipes cannot be shared.
        if found is None or found.owner != os.getpid():
            found = _open[allow_unsandboxed] = Sandbox(_choose(allow_unsandboxed))
            atexit.register(found.close)
        return found


def _choose(allow_unsandboxed: bool) -> Launcher:
    tried = []
    for launcher in launch.sandboxes():
        if (problem := trial(launcher)) is None:
            return launcher
        tried.append(f"{launcher.name} ({problem})")
    if allow_unsandboxed and platform.system() != "Windows":
        logger.warning(
            "programs that the model writes run WITHOUT a sandbox: as you, with your files and your network, under "
            "limits of time and memory alone. Tried: %s.", "; ".join(tried) or "nothing that this system has",
        )  # fmt: skip
        return launch.bare()
    raise SandboxError(_refusal(tried))


def trial(launcher: Launcher) -> str | None:
    """What is wrong with a launcher, by running a trivial program in it; None if nothing is."""
    worker = None
    try:
        worker = _Worker(launcher)
        job = Calls(program=_TRIAL, calls=[("look", [str(launch.HERE)])])
        (outcome,) = worker.ask([job], Limits(wall_seconds=START_SECONDS - GRACE_SECONDS))
    except _Failure as failure:
        return str(failure)
    finally:
        if worker is not None:
            worker.close()
    fine = outcome.reason == "ok" and outcome.values and outcome.values[0][0] is False  # pyright: ignore
    return None if fine else f"a trial program was not shut in: {outcome.reason}, {outcome.values}"


def _refusal(tried: Sequence[str]) -> str:
    what = (
        "this task runs programs that the model writes, and there is no sandbox for them here. "
        f"Tried: {'; '.join(tried) or 'bwrap and unshare, which are not there'}. "
    )
    if platform.system() == "Windows":
        return what + "Windows has none that works: use WSL2 or a Linux machine."
    if platform.system() != "Linux":
        return what + "Use Linux, or accept the risk with --allow-unsandboxed."
    return what + (
        "Install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`) and let users make namespaces "
        "(`sysctl kernel.unprivileged_userns_clone=1`; on Ubuntu 24.04 "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in Docker `--security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --cap-add SYS_ADMIN`). Or accept the risk with --allow-unsandboxed, on a "
        "machine that has nothing to lose."
    )
