"""What one run of a program may use, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Enforced by the kernel for every process of a job, and for the job as a whole where the name says so."""

    seconds: float = 6.0
    """CPU time, in whole seconds and at least one."""
    wall_seconds: float = 15.0
    """Of the whole job. Larger than `seconds`, so that a busy machine does not fail a good program."""
    memory: int = 512 * _MEGABYTE
    """Address space of each process, in bytes: a job may use `processes` times as much."""
    processes: int = 4
    """Processes and threads of the job."""
    output: int = 4 * _MEGABYTE
    """Bytes that the job may print, and bytes that it may answer."""
    file_size: int = 8 * _MEGABYTE
    scratch: int = 16 * _MEGABYTE
    """Bytes in the job's scratch folder, which is in memory."""
    files: int = 256
    """Files and folders in the scratch folder."""
    open_files: int = 48


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one job."""

    reason: str
    """'ok', or why the program did not run to its end: 'error' (it raised), 'timeout', 'memory', 'output', 'crash'."""
    values: tuple[Any, ...] = ()
    """What each call returned: plain data, or a `Failed`. Fewer than the calls, where the program ended early."""
    stdout: str = ""
    passed: tuple[bool, ...] = ()
    """For each test whether it passed. Fewer than there are tests, where the first failure ended it."""


@dataclass(frozen=True)
class Failed:
    """Stands for the value of a call that raised."""

    error: str
    """Name of the exception's class."""
