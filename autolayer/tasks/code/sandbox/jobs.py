"""The records of the sandbox: the jobs that it runs, the limits that they run under, and what comes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a job. The kernel enforces them for each process, or for the whole job if a field says so."""

    seconds: float = 6.0
    """CPU time, rounded to whole seconds and at least one."""
    wall_seconds: float = 15.0
    """Time for the whole job. Larger than `seconds`, so that a busy machine does not fail a good program."""
    memory: int = 512 * _MEGABYTE
    """Address space in bytes. A job may use `processes` times as much."""
    processes: int = 4
    """Processes and threads of the whole job."""
    output: int = 4 * _MEGABYTE
    """Bytes of a file, and so of what a script may print or a program may return."""
    scratch: int = 32 * _MEGABYTE
    """Bytes in the scratch folder, which is in memory and holds the standard input and the output too."""
    files: int = 256
    """Files and folders in the scratch folder."""
    open_files: int = 48


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A program, and calls of its functions."""

    program: str
    calls: Sequence[tuple[str, Sequence[Any]]]
    """Name of the function and its arguments, in types that JSON has."""
    prelude: str = ""
    """Code that runs before the program. The names it defines can be used, but do not count as the program's own."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """A program that reads standard input and prints."""

    program: str
    stdin: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A program, and tests of it that are Python themselves. With `run_all` they go on after one has failed."""

    program: str
    tests: Sequence[str]
    functions: Sequence[str]
    """Names that the tests use and the program defines."""
    setup: str = ""
    """Code that runs before the tests, where the program cannot see it."""
    run_all: bool = False


Job = Calls | Script | Judged


@dataclass(frozen=True)
class Failed:
    """Stands for the value of a call that raised an exception of this class, or returned what JSON cannot hold."""

    error: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one job."""

    reason: str
    """'ok', or what ended the program: 'error' (it raised an exception), 'timeout', 'memory', 'output' or 'crash'."""
    values: tuple[Any, ...] = ()
    """Value of each call as JSON has it, or `Failed`. Fewer than the calls if the program ended early."""
    stdout: str = ""
    passed: tuple[bool, ...] = ()
    """True for each test that passed. Fewer than the tests if the first failure ended them."""
