"""Compares answers with math-verify in a few processes that can be killed. `Pool` also serves other scorers.

math-verify calls sympy, which can run forever or use all memory on what a model writes (`9^{9^{9^9}}`). Its own time
limit is `signal.alarm`, which works in a main thread only, so that trainers which caught the error silently scored 0.
The processes are started as plain `python -c` and exchange JSON lines. This needs no `__main__` guard in the caller's
script and no pickling.
"""

import atexit
import functools
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autolayer.core.errors import RewardError

TIME_LIMIT = 5.0  # seconds for one comparison; they take milliseconds
START_LIMIT = 120.0  # seconds for importing sympy, on a machine that is busy
MEMORY_LIMIT = 4 << 30  # bytes of address space for a process, where the system can limit it

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Environment variables that a process which reads a model's words gets: no keys and tokens."""

MATH = "autolayer.tasks.math.answer_pool"

FAILURES = ("timeout", "crash", "error")
"""Results that are not a verdict: killed after the time limit, died, or an exception inside math-verify."""


def compare(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Compares each (answer, right answer): 'equal', 'different', 'bad gold' or one of `FAILURES`.

    It is safe to call from any thread.

    Raises:
        RewardError: The processes cannot be started.
    """
    return pool().compare(pairs)


class Worker:
    """A process that compares answers, and is killed when it takes too long.

    Args:
        module: Module whose `serve()` the process runs.
        package: Package that the module needs, for the message.
    """

    def __init__(self, module: str = MATH, package: str = "math-verify") -> None:
        # A file, not a pipe: nobody reads it while the process runs. It lives as long as the worker.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        package_root = str(Path(__file__).resolve().parents[3])
        search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={name: os.environ[name] for name in INHERITED if name in os.environ} | {"PYTHONPATH": search_path},
            encoding="utf-8",
        )
        if self._read(START_LIMIT) != "ready":
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["no message"]
            self.close()
            raise RewardError(
                f"the process that checks answers did not start ({last[0]}): `pip install {package}` "
                f"into {sys.executable}."
            )

    def ask(self, answer: str, gold: str) -> str:
        """Returns how the answers compare. After 'timeout' and 'crash' this worker is dead."""
        assert self._process.stdin is not None, "it was opened with a pipe"
        try:
            self._process.stdin.write(json.dumps({"answer": answer, "gold": gold}) + "\n")
            self._process.stdin.flush()
        except OSError:
            return "crash"
        return self._read(TIME_LIMIT)

    def _read(self, limit: float) -> str:
        assert self._process.stdout is not None, "it was opened with a pipe"
        late = threading.Event()
        timer = threading.Timer(limit, lambda: (late.set(), self._process.kill()))
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        # A line that came with the kill still counts as late: the worker is gone.
        return "timeout" if late.is_set() else json.loads(line) if line else "crash"

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            try:
                stream.close() if stream is not None else None
            except OSError:  # the pipe of a dead process, with a request still in it
                continue


class Pool:
    """A few workers, which are started when first needed."""

    def __init__(self, size: int, module: str = MATH, package: str = "math-verify") -> None:
        self.owner = os.getpid()
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="autolayer-answers")
        self._new_worker = functools.partial(Worker, module, package)
        self._workers: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(size):
            self._workers.put(None)

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Returns what the workers answer for each (answer, right answer), or one of `FAILURES`."""
        return list(self._threads.map(lambda pair: self._compare(*pair), pairs))

    def _compare(self, answer: str, gold: str) -> str:
        worker, reason = self._workers.get(), ""
        try:
            # A second attempt in a fresh process, because the first process may have died of something else.
            for _ in range(2):
                worker = worker or self._new_worker()
                reason = worker.ask(answer, gold)
                if reason not in ("timeout", "crash"):
                    break
                worker.close()
                worker = None
        finally:
            self._workers.put(worker)
        return reason

    def close(self) -> None:
        """Ends the workers."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._workers.empty():
            if worker := self._workers.get():
                worker.close()


_pools: dict[str, Pool] = {}
_pools_lock = threading.Lock()


def pool(module: str = MATH, package: str = "math-verify") -> Pool:
    """Returns this process's pool for a module. A forked process makes its own: it cannot share its parent's pipes."""
    with _pools_lock:
        if module not in _pools or _pools[module].owner != os.getpid():
            _pools[module] = Pool(min(4, os.cpu_count() or 1), module, package)
            atexit.register(_pools[module].close)
        return _pools[module]


def serve() -> None:
    """Runs in a worker: compares answers with math-verify."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # math-verify warns that its own time limit is off, which is the point

    def value(text: str) -> list:
        return parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]

    def reason(answer: str, gold: str) -> str:
        if not (wanted := value(gold)):
            return "bad gold"
        correct = verify(wanted, value(answer), timeout_seconds=None, raise_on_error=True)
        return "equal" if correct else "different"

    answer_requests(reason)


def answer_requests(reason: Callable[[str, str], str]) -> None:
    """Reads pairs from stdin and writes `reason(answer, gold)` to stdout, until stdin ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers

    def send(word: str) -> None:
        channel.write(json.dumps(word) + "\n")
        channel.flush()

    _limit_memory()
    send("ready")
    for line in sys.stdin:
        _limit_seconds()
        request = json.loads(line)
        try:
            send(reason(request["answer"], request["gold"]))
        except Exception:  # its type depends on the text; the parent counts it by name
            send("error")


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, OSError, ValueError):  # Windows and macOS cannot: the time limit has to do
        return


def _limit_seconds() -> None:
    """Limits CPU time, so that this process ends if its parent was killed and cannot kill it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime + 2 * TIME_LIMIT) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
