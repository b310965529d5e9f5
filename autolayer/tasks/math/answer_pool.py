"""Compares answers with math-verify in a few processes that end when a comparison takes too long.

math-verify calls sympy, which can run forever or use all memory on what a model writes (`9^{9^{9^9}}`). Its own time
limit raises an exception from a signal handler, which works in a main thread only and is caught inside sympy. The
processes are started as plain `python -c` and exchange JSON lines. This needs no `__main__` guard in the caller's
script and no pickling.
"""

import contextlib
import functools
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autolayer.core.errors import RewardError

TIME_LIMIT = 5.0  # seconds for one comparison; they take milliseconds
START_LIMIT = 120.0  # seconds for importing sympy, on a machine that is busy
MEMORY_LIMIT = 4 << 30  # bytes of address space for a process

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Environment variables that a process which reads a model's words gets: no keys and tokens."""

FAILURES = ("timeout", "crash", "error")
"""Results that are not a verdict: ended after the time limit, died, or an exception inside math-verify."""

_own = threading.local()
"""The `worker` of each thread of the pool."""


def compare(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Compares each (answer, right answer), in any thread: 'equal', 'different', 'bad gold' or one of `FAILURES`."""
    return list(_threads(os.getpid()).map(lambda pair: _compare(*pair), pairs))


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process. A forked process has none of its parent's."""
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="autolayer-answers")


def _compare(answer: str, gold: str) -> str:
    reason = ""
    # A second attempt in a fresh process, because the first process may have died of something else.
    for _ in range(2):
        worker = _own.worker = getattr(_own, "worker", None) or Worker()
        reason = worker.ask(answer, gold)
        if reason not in ("timeout", "crash"):
            break
        _own.worker = None
    return reason


class Worker:
    """A process that compares answers. It ends with this process, or after a 'timeout' or 'crash'."""

    def __init__(self) -> None:
        package_root = str(Path(__file__).resolve().parents[3])
        search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({TIME_LIMIT})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in INHERITED if name in os.environ} | {"PYTHONPATH": search_path},
            encoding="utf-8",
        )
        said = self._read()
        if said != "ready":
            raise RewardError(
                f"the process that checks answers did not start ({said}): `pip install math-verify` into "
                f"{sys.executable}."
            )

    def ask(self, answer: str, gold: str) -> str:
        """Returns how the answers compare. After 'timeout' and 'crash' this worker is dead."""
        assert self.process.stdin is not None, "it was opened with a pipe"
        with contextlib.suppress(BrokenPipeError):  # it died since the last answer, as the next line tells
            self.process.stdin.write(json.dumps({"answer": answer, "gold": gold}) + "\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None, "it was opened with a pipe"
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.communicate()  # closes the pipes
        return "timeout" if self.process.returncode == -signal.SIGALRM else "crash"


def serve(time_limit: float) -> None:
    """Runs in a worker: answers the requests on stdin until it ends.

    An alarm that nothing handles ends the process, whatever sympy is doing, even if the parent is gone.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers

    def send(word: str) -> None:
        channel.write(json.dumps(word) + "\n")
        channel.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, START_LIMIT)
    with contextlib.suppress(ValueError):  # the limit is lower already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    try:
        from math_verify import parse, verify
    except Exception as error:
        return send(f"{type(error).__name__}: {error}")
    logging.disable(logging.WARNING)  # math-verify warns that its own time limit is off, which is the point

    def value(text: str) -> list:
        return parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]

    def reason(answer: str, gold: str) -> str:
        if not (wanted := value(gold)):
            return "bad gold"
        correct = verify(wanted, value(answer), timeout_seconds=None, raise_on_error=True)
        return "equal" if correct else "different"

    signal.setitimer(signal.ITIMER_REAL, 0)
    send("ready")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, time_limit)
        try:
            found = reason(**json.loads(line))
        except Exception:  # its type depends on the text; the parent counts it by name
            found = "error"
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(found)
