"""What the sandbox can be asked for, and how it is asked: jobs as frames, and outcomes from what comes back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autolayer.tasks.code import wire
from autolayer.tasks.code.limits import Failed, Limits, Outcome

MAX_HASHED = 4000
"""Items of a set or dictionary that a program may return."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A program, and calls of its functions."""

    program: str
    calls: Sequence[tuple[str, Sequence[Any]]]
    """Name of the function and its arguments, which must be plain data."""
    prelude: str = ""
    """Run before the program; what it defines is there to be used, and is not the program's own."""


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


Job = Calls | Script | Judged


def opening_frames(jobs: Sequence[Job], limits: Limits) -> list[bytes]:
    """What the zygote is sent first. The tests are a frame of their own, which only the judge reads."""
    (job, *_), shared = jobs, {"limits": asdict(limits)}
    if isinstance(job, Script):
        parts = [{"kind": "stdin", "program": job.program, "input": job.stdin, **shared}]
    elif isinstance(job, Judged):
        tests = {"tests": job.tests, "functions": job.functions, "setup": job.setup, "all": job.run_all}
        parts = [{"kind": "tests", "program": job.program, **shared}, tests]
    else:
        parts = [{"kind": "batch", "num": len(jobs), **shared}]
    return [json.dumps(frame).encode() for frame in parts]


def program_frame(job: Calls) -> bytes:
    """What the process of one program in a batch is sent, and reads itself."""
    calls = [[name, *map(wire.encode, arguments)] for name, arguments in job.calls]
    return json.dumps({"program": job.program, "prelude": job.prelude, "calls": calls}).encode()


def outcome_of(job: Job, reason: str, result: bytes) -> Outcome:
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
                values.append(wire.decode(line[len(b'{"value": ') : -1], max_hashed=MAX_HASHED))
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
