"""Inside the sandbox: the process that runs the tests of a problem against a program in another process.

The tests see the program's functions as stand-ins, which send the arguments over a pipe and return what comes back as
plain data. So any test works, loops and tolerances included; the program never meets the expected values, and nothing
that it patches (builtins, unittest, `__eq__`) is used for the verdict. The price: arguments must be plain data, and an
argument that the program changes in place is not changed here.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Sequence
from typing import Any

from autolayer.tasks.code import wire
from autolayer.tasks.code.child import keep_only, lock_up

_VERDICT, _CALLS, _ANSWERS = 1, 3, 4
_VALUE = b'{"value": '


class Gone(BaseException):
    """The program's process has ended. No Exception, or a test that expects one would pass."""


def run(mode: str, limits: dict[str, Any], descriptors: Sequence[int]) -> int:
    """Reads the tests, runs them, and writes one true or false for each: fewer, where the first failure ends it.

    Args:
        mode: As in `zygote.main`.
        limits: As in `limits.Limits`.
        descriptors: To read the tests, to write the verdict, to write calls, to read answers.
    """
    tests_in, verdict, calls, answers = descriptors
    frame = wire.receive(tests_in)
    assert frame is not None, "tests follow a job of kind 'tests'"
    part = json.loads(frame)
    nothing = os.open(os.devnull, os.O_RDWR)
    keep_only((nothing, verdict, nothing, calls, answers))
    lock_up(mode, limits)
    saved = os.dup(_VERDICT)
    os.dup2(2, _VERDICT)  # what tests print must not mix with the verdict
    program = _Program(limits["output"])
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(part["setup"], "setup.py", "exec"), space)
    space |= {name: program.function(name) for name in part["functions"]}
    passed = []
    for test in part["tests"]:
        try:
            exec(compile(test, "test.py", "exec"), space)
            passed.append(True)
        except Gone:
            break
        except BaseException:  # whatever a test raises, it has not passed
            passed.append(False)
        if not passed[-1] and not part["all"]:
            break
    os.write(saved, json.dumps(passed).encode())
    return 0


class _Program:
    """The program on the other end of the pipes."""

    def __init__(self, max_bytes: int) -> None:
        self._answers = os.fdopen(_ANSWERS, "rb")
        self._max_bytes = max_bytes

    def function(self, name: str) -> Any:
        def stand_in(*arguments: Any, **named: Any) -> Any:
            return self._call(name, arguments, named)

        stand_in.__name__ = name
        return stand_in

    def _call(self, name: str, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        data = memoryview((wire.encode((name, list(arguments), named)) + "\n").encode())
        try:
            while data:
                data = data[os.write(_CALLS, data) :]
        except BrokenPipeError:
            raise Gone from None
        line = self._answers.readline(self._max_bytes)
        if not line.endswith(b"\n"):
            raise Gone
        try:
            if line.startswith(_VALUE):
                return wire.decode(line[len(_VALUE) : -2])
            kind = getattr(builtins, str(json.loads(line)["error"]), None)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Gone from None
        is_error = isinstance(kind, type) and issubclass(kind, Exception)
        raise (kind if is_error else RuntimeError)("raised by the program")  # pyright: ignore
