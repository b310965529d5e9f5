"""Inside the sandbox: the process that runs the tests of a problem against a program in another process.

The tests see the program's functions as proxies, which send the arguments over a pipe and return what comes back as
plain data. So any test works, loops and tolerances included. The program never meets the expected values, and nothing
that it patches (builtins, unittest, `__eq__`) is used for the verdict. Two things do not work: arguments that are not
plain data, and tests of what the program did to its arguments.
"""

import builtins
import json
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from autolayer.tasks.code.sandbox import confine, protocol

_CALLS, _ANSWERS, _VERDICT = 3, 4, 5


class ProgramEnded(BaseException):
    """The program's process has ended. It is not an Exception, or a test that expects one would pass."""


def run(host: Connection, mode: str, limits: dict[str, Any], descriptors: Sequence[int]) -> int:
    """Runs the next tests of the host and writes a list of booleans, shorter than the tests if a failure ends them.

    Args:
        host: The connection to read the tests from.
        mode: As in `fork_server.main`.
        limits: The fields of `jobs.Limits`.
        descriptors: Pipes for the verdict, for calls of the program, and for its answers.
    """
    job = json.loads(host.recv_bytes())
    verdict, calls, answers = descriptors
    os.write(verdict, b"\n")  # the host's next frame is the program's
    nothing = os.open(os.devnull, os.O_RDWR)
    confine.keep_only((nothing, nothing, nothing, calls, answers, verdict))
    confine.lock_up(mode, limits)
    call = _caller(limits["output"])
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(job["setup"], "setup.py", "exec"), space)
    space |= {name: _proxy(call, name) for name in job["functions"]}
    passed = []
    for test in job["tests"]:
        try:
            exec(compile(test, "test.py", "exec"), space)
            passed.append(True)
        except ProgramEnded:
            break
        except BaseException:  # a test that raises anything has not passed
            passed.append(False)
        if not passed[-1] and not job["run_all"]:
            break
    confine.write(_VERDICT, json.dumps(passed).encode())
    return 0


def _proxy(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def proxy(*arguments: Any, **named: Any) -> Any:
        return call(name, arguments, named)

    proxy.__name__ = name
    return proxy


def _caller(max_bytes: int) -> Callable[..., Any]:
    """Returns a function that calls the program at the other end of the pipes and returns its answer."""
    answers = os.fdopen(_ANSWERS, "rb")

    def call(name: str, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        try:
            confine.write(_CALLS, (protocol.encode((name, list(arguments), named)) + "\n").encode())
        except BrokenPipeError:
            raise ProgramEnded from None
        line = answers.readline(max_bytes)
        try:
            value = protocol.decode(line)
        except ValueError:
            raise ProgramEnded from None
        if not isinstance(value, protocol.Failed):
            return value
        kind = getattr(builtins, value.error, None)
        is_error = isinstance(kind, type) and issubclass(kind, Exception)
        raise (kind if is_error else RuntimeError)("raised by the program")  # pyright: ignore

    return call
