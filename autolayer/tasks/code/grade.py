"""Grades programs by the tests of their problems: the sandbox runs them, and their outputs are compared here."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autolayer.tasks.code.problems import CodeProblem
from autolayer.tasks.code.sandbox.jobs import Calls, Judged, Outcome, Script
from autolayer.tasks.code.sandbox.pool import Sandbox

RELATIVE, ABSOLUTE = 1e-9, 1e-6  # tolerances of a decimal fraction in an output

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
    """Grades each program (None for a completion without one) by its problem.

    With `share` all tests run, for the share that passes. Else the first failure ends the tests of a program.
    """
    # A group often agrees on one program: each is run once.
    asked = dict.fromkeys((p, q) for p, q in zip(programs, problems, strict=True) if p is not None)
    scripts = [(program, problem) for program, problem in asked if not problem.tests and problem.fn_name is None]
    others = [key for key in asked if key not in set(scripts)]
    done = sandbox.run([_job(program, problem, share) for program, problem in others])
    scores: dict[tuple[str | None, CodeProblem], Score] = {
        (program, problem): _score(problem, outcome) for (program, problem), outcome in zip(others, done, strict=True)
    }
    scores |= _grade_scripts(scripts, sandbox, share)
    return [scores.get(key, Score(0.0, "no program")) for key in zip(programs, problems, strict=True)]


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
    keys: Sequence[tuple[str, CodeProblem]], sandbox: Sandbox, share: bool
) -> dict[tuple[str, CodeProblem], Score]:
    """Runs a script once for every input; without `share`, in growing rounds of scripts without a failure."""
    passed, reasons, done = dict.fromkeys(keys, 0), dict.fromkeys(keys, "ok"), 0
    alive, step = list(keys), 10**9 if share else 1
    while alive:
        runs = [(key, i) for key in alive for i in range(done, min(done + step, len(key[1].inputs)))]
        jobs = [Script(program=program, stdin=problem.inputs[i]) for (program, problem), i in runs]
        for (key, i), outcome in zip(runs, sandbox.run(jobs), strict=True):
            passed[key] += outcome.reason == "ok" and same_text(outcome.stdout, key[1].outputs[i])
            if outcome.reason != "ok":
                reasons[key] = outcome.reason
        done, step = done + step, 2 * step
        alive = [key for key in alive if passed[key] == done and done < len(key[1].inputs)]
    return {key: Score(passed[key] / len(key[1].inputs), reasons[key]) for key in keys}


def same_text(found: str, wanted: str) -> bool:
    """Returns True if two outputs have the same lines of words. Decimal fractions may differ by a tolerance."""
    if len(found) > 100 * len(wanted) + 10_000:  # much more than was asked for, which would take long to split
        return False
    lines, wanted_lines = ([line.split() for line in text.strip().splitlines()] for text in (found, wanted))
    if [len(line) for line in lines] != [len(line) for line in wanted_lines]:
        return False
    pairs = zip(itertools.chain(*lines), itertools.chain(*wanted_lines), strict=True)
    return all(word == other or ("." in other and _is_close(word, other)) for word, other in pairs)


def _is_output(found: Any, wanted: Any, problem: CodeProblem) -> bool:
    unwrapped = problem.wrapped and isinstance(wanted, list) and len(wanted) == 1
    return same_value(found, wanted) or (unwrapped and same_value(found, wanted[0]))


def same_value(found: Any, wanted: Any) -> bool:
    """Returns True if two values agree, as JSON has them: a tuple is a list, a key is a text. A bool is no number."""
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same_value, found, wanted))
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(same_value(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, float):
        return isinstance(found, (int, float)) and not isinstance(found, bool) and _is_close(found, wanted)
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def _is_close(found: Any, wanted: Any) -> bool:
    try:
        return math.isclose(float(found), float(wanted), rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except (ValueError, OverflowError):
        return False
