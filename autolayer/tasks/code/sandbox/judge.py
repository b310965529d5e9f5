"""Inside the sandbox: the process that runs the tests of a problem against a program in another process.

The tests see the program's functions as proxies, which send the arguments to the program's process and return what
comes back as plain data. So any test works, loops and tolerances included. The program never meets the expected values,
and nothing that it patches (builtins, unittest, `__eq__`) is used for the verdict. Two things do not work: arguments
that are not plain data, and tests of what the program did to its arguments.
"""

import builtins
import json
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from autolayer.tasks.code.sandbox import confine, protocol

_PROGRAM, _VERDICT = 3, 4
_SWALLOWED = (StopIteration, StopAsyncIteration)  # `map` and `zip` would take them for the end of what they read


class ProgramEnded(BaseException):
    """The program's process has ended. It is not an Exception, or a test that expects one would pass."""


def run_judge(host: Connection, peer: Connection, verdict: int, mode: str, limits: dict[str, Any]) -> int:
    """Runs the host's tests against the program in the peer's process, and writes booleans to the file `verdict`."""
    job = json.loads(host.recv_bytes())
    nothing = os.open(os.devnull, os.O_RDWR)
    confine.keep_only((nothing, nothing, nothing, peer.fileno(), verdict))
    confine.lock_up(mode, limits)
    program = Connection(_PROGRAM)
    program.send_bytes(json.dumps({"program": job["program"]}).encode())
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(job["setup"], "setup.py", "exec"), space)
    called: set[str] = set()
    space |= {name: _proxy(program, name, limits["output"], called) for name in job["functions"]}
    passed: list[bool] = []
    for test in job["tests"]:
        try:
            exec(compile(test, "test.py", "exec"), space)
            is_passed = bool(called)  # a `check` that is defined and not called has tested nothing
        except BaseException:  # a test that raises anything has not passed
            is_passed = False
        if program.closed:  # also if the test has caught that
            break
        passed.append(is_passed)
        if not is_passed and not job["run_all"]:
            break
    os.write(_VERDICT, json.dumps(passed).encode())
    return 0


def _proxy(program: Connection, name: str, max_bytes: int, called: set[str]) -> Callable[..., Any]:
    def proxy(*arguments: Any, **named: Any) -> Any:
        called.add(name)
        call = json.dumps(protocol.to_json([name, arguments, named])).encode()
        try:
            program.send_bytes(call)
            error, value = json.loads(program.recv_bytes(max_bytes))
            value = protocol.from_json(value)
        except Exception:  # forged bytes may fail in any way
            program.close()
            raise ProgramEnded from None
        if error is None:
            return value
        kind = getattr(builtins, str(error), None)
        is_usual = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _SWALLOWED)
        raise (kind if is_usual else RuntimeError)("raised by the program")  # pyright: ignore

    proxy.__name__ = name
    return proxy
