"""Grades programs by the tests of their problems: the sandbox runs them, and their outputs are compared here."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autolayer.tasks.code.problems import CodeProblem
from autolayer.tasks.code.sandbox.jobs import Calls, Judged, Limits, Outcome, Script
from autolayer.tasks.code.sandbox.pool import Sandbox

PROGRAM_LIMITS = Limits(seconds=6, wall_seconds=15)
TOLERANCE = 1e-6  # between decimal fractions in an output

# LeetCode gives its solutions these names without an import, and so do the collections made from it.
USUAL_IMPORTS = """\
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import ceil, floor, gcd, inf, sqrt
from typing import *
"""


@dataclass(frozen=True)
class Score:
    """The grade of a program."""

    share: float
    """Share of the tests that passed."""
    reason: str
    """The reason of its `Outcome`, or 'no program'."""

    @property
    def passed(self) -> bool:
        """True if every test passed."""
        return self.share == 1.0


def grade(
    programs: Sequence[str | None], problems: Sequence[CodeProblem], sandbox: Sandbox, *, share: bool = False
) -> list[Score]:
    """Grades each program by its problem.

    Args:
        programs: Programs, or None for a completion without one.
        problems: The problem of each program.
        sandbox: The sandbox that runs them.
        share: Runs all tests, for the share that passes. Else the first failure ends the tests of a program.

    Raises:
        SandboxError: The sandbox itself failed.
    """
    asked = list(dict.fromkeys((p, q) for p, q in _keys(programs, problems) if p is not None))
    by_id = {id(problem): problem for problem in problems}
    functions = [key for key in asked if by_id[key[1]].tests or by_id[key[1]].fn_name]
    scripts = [key for key in asked if key not in set(functions)]
    jobs = [_job(program, by_id[number], share) for program, number in functions]
    done = sandbox.run(jobs, PROGRAM_LIMITS) if jobs else []
    scores = {key: _score(by_id[key[1]], outcome) for key, outcome in zip(functions, done, strict=True)}
    scores |= _grade_scripts(scripts, by_id, sandbox, share)
    nothing = Score(0.0, "no program")
    return [scores[p, q] if p is not None else nothing for p, q in _keys(programs, problems)]


def _keys(programs: Sequence[str | None], problems: Sequence[CodeProblem]) -> list[tuple[Any, int]]:
    """Returns pairs to run once each: a group often agrees on one program."""
    return [(program, id(problem)) for program, problem in zip(programs, problems, strict=True)]


def _job(program: str, problem: CodeProblem, run_all: bool) -> Calls | Judged:
    if problem.fn_name is None:
        return Judged(
            program=program, tests=problem.tests, functions=problem.functions, setup=problem.setup, run_all=run_all
        )
    calls = [(problem.fn_name, arguments) for arguments in problem.inputs]
    return Calls(program=program, calls=calls, prelude=USUAL_IMPORTS)


def _score(problem: CodeProblem, outcome: Outcome) -> Score:
    if problem.tests:
        return Score(sum(outcome.passed) / len(problem.tests), outcome.reason)
    passed = [
        _is_output(value, wanted, problem) for value, wanted in zip(outcome.values, problem.outputs, strict=False)
    ]
    return Score(sum(passed) / len(problem.outputs), outcome.reason)


def _grade_scripts(
    keys: Sequence[tuple[str, int]], by_id: dict[int, CodeProblem], sandbox: Sandbox, share: bool
) -> dict[tuple[str, int], Score]:
    """Runs a script once for every input; without `share`, in growing rounds of scripts without a failure."""
    passed, reasons, done = dict.fromkeys(keys, 0), dict.fromkeys(keys, "ok"), 0
    alive, step = list(keys), 10**9 if share else 1
    while alive:
        runs = [(key, i) for key in alive for i in range(done, min(done + step, len(by_id[key[1]].inputs)))]
        jobs = [Script(program=key[0], stdin=by_id[key[1]].inputs[i]) for key, i in runs]
        for (key, i), outcome in zip(runs, sandbox.run(jobs, PROGRAM_LIMITS), strict=True):
            passed[key] += outcome.reason == "ok" and same_text(outcome.stdout, by_id[key[1]].outputs[i])
            if outcome.reason != "ok":
                reasons[key] = outcome.reason
        done, step = done + step, 2 * step
        alive = [key for key in alive if passed[key] == done and done < len(by_id[key[1]].inputs)]
    return {key: Score(passed[key] / len(by_id[key[1]].inputs), reasons[key]) for key in keys}


def same_text(found: str, wanted: str) -> bool:
    """Returns True if two outputs have the same lines of words. Decimal fractions may differ by `TOLERANCE`."""
    lines, wanted_lines = ([line.split() for line in text.strip().splitlines()] for text in (found, wanted))
    if lines == wanted_lines:
        return True
    if [len(line) for line in lines] != [len(line) for line in wanted_lines]:
        return False
    pairs = zip(itertools.chain(*lines), itertools.chain(*wanted_lines), strict=True)
    return all(word == other or ("." in other and _close(word, other)) for word, other in pairs)


def _close(found: Any, wanted: Any) -> bool:
    try:
        return math.isclose(float(found), float(wanted), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except (ValueError, OverflowError):
        return False


def _is_output(found: Any, wanted: Any, problem: CodeProblem) -> bool:
    unwrapped = problem.wrapped and isinstance(wanted, list) and len(wanted) == 1
    return same_value(found, wanted) or (unwrapped and same_value(found, wanted[0]))


def same_value(found: Any, wanted: Any) -> bool:
    """Returns True if plain values agree. JSON has no tuples, so a tuple may stand for a list. A bool is no number."""
    if isinstance(wanted, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(wanted) and all(map(same_value, found, wanted))
    if isinstance(wanted, dict):
        keys = {_name(key): value for key, value in found.items()} if isinstance(found, dict) else {}
        return keys.keys() == set(map(_name, wanted)) and all(same_value(keys[_name(k)], wanted[k]) for k in wanted)
    if isinstance(wanted, bool) or isinstance(found, bool) or not isinstance(wanted, (int, float)):
        return type(found) is type(wanted) and found == wanted
    if not isinstance(found, (int, float)):
        return False
    if isinstance(wanted, int) and isinstance(found, int):
        return found == wanted
    return _close(found, wanted)


def _name(key: Any) -> str:
    """Returns a key as it is in JSON."""
    try:
        return str(key)
    except ValueError:  # an integer of more digits than Python writes
        return ""
