r"""Parses the tests of a programming problem, in the three forms that public data sets have.

    {"tests": ["assert f(2) == 4"], "entry_point": "f", "setup": "import math"}     # MBPP, HumanEval
    {"inputs": ["1 2\n"], "outputs": ["3\n"]}                                         # standard input and output
    {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}                          # calls; a method of Solution too

One of these, as a JSON text or a dictionary, is the column `problem` of a row. `prefix` is code at the beginning of the
program.
"""

import ast
import builtins
import functools
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autolayer.core.errors import DataError
from autolayer.tasks.rewards import show

FORMS = '{"tests": [...], "entry_point": ...}, {"inputs": [...], "outputs": [...]} or these with "fn_name"'


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeProblem:
    """The tests of a program, and code at its beginning (`prefix`)."""

    tests: tuple[str, ...] = ()
    """Tests that are Python with an assert; empty for the two forms with inputs and outputs."""
    functions: tuple[str, ...] = ()
    """Names that the tests use and the program must define."""
    setup: str = ""
    """Code that runs before the tests."""
    fn_name: str | None = None
    """Function that is called with the inputs; None for standard input."""
    inputs: tuple[Any, ...] = ()
    """The text on standard input, or the list of arguments, of each test."""
    outputs: tuple[Any, ...] = ()
    """The expected output of each test, printed or returned."""
    wrapped: bool = False
    """True if an output may be a list of one value that stands for the value, as in some collections."""
    prefix: str = ""


def parse_problem(given: Any) -> CodeProblem:
    """Returns the problem that a row describes, one object for equal problems; refuses one that cannot be tested."""
    if not isinstance(given, (str, Mapping)):
        raise DataError(f"the problem {show(given)} is a {type(given).__name__}: give {FORMS}.")
    try:
        return _parse_text(given if isinstance(given, str) else json.dumps(dict(given)))
    except DataError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the problem {show(given)} is not valid JSON ({error}): give {FORMS}.") from None


@functools.lru_cache(maxsize=512)
def _parse_text(text: str) -> CodeProblem:
    given = json.loads(text)
    if not isinstance(given, dict):
        raise DataError(f"the problem {show(given)} is a {type(given).__name__}: give {FORMS}.")
    given = {name: value for name, value in given.items() if value is not None}
    if "tests" in given:
        return _with_tests(given)
    if "inputs" in given or "outputs" in given:
        return _with_outputs(given)
    raise DataError(f"the problem {show(given)} has no tests, so no program could be judged by it: give {FORMS}.")


def _with_tests(given: dict[str, Any]) -> CodeProblem:
    tests, setup, entry = given["tests"], given.get("setup", ""), given.get("entry_point")
    if not isinstance(tests, list) or not tests:
        raise DataError(
            f"the tests {show(tests)} are no list with a test in it: give texts such as 'assert f(2) == 4'."
        )
    if bad := [test for test in tests if not isinstance(test, str) or "assert" not in test]:
        raise DataError(f"the test {show(bad[0])} asserts nothing: give texts such as 'assert f(2) == 4'.")
    try:
        trees = [ast.parse(setup), *map(ast.parse, tests)]
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise DataError(f"a test or its setup is no Python ({error}): {show(tests)}.") from None
    needed = _undefined(trees)
    # The usual harness runs tests inside the program, where they can rely on the program's own imports.
    if modules := [name for name in needed if name in sys.stdlib_module_names]:
        setup = "\n".join([f"import {', '.join(modules)}", setup])
        needed = [name for name in needed if name not in modules]
    functions = (*([entry] if entry else []), *(name for name in needed if name != entry))
    if not functions:
        raise DataError(f"the tests {show(tests)} use nothing that a program defines: give its name as 'entry_point'.")
    if classes := [name for name in functions if name[:1].isupper() and name != entry]:
        raise DataError(
            f"the tests {show(tests)} use {', '.join(classes)}, which looks like a class of the program: only "
            "functions of plain data can be tested from outside. Leave the problem out, or define the class in 'setup'."
        )
    calls = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    called = [call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
    if ignored := [name for name in called if name in functions]:
        raise DataError(
            f"a test of {show(tests)} calls {ignored[0]} and ignores what it returns, to look at what it did to its "
            "arguments; that cannot be seen from outside the program. Leave the problem out."
        )
    return CodeProblem(tests=tuple(tests), functions=functions, setup=setup, prefix=given.get("prefix", ""))


def _with_outputs(given: dict[str, Any]) -> CodeProblem:
    inputs, outputs, name = given.get("inputs"), given.get("outputs"), given.get("fn_name")
    if not (isinstance(inputs, list) and isinstance(outputs, list) and inputs and outputs):
        raise DataError(f"the problem {show(given)} has no tests: give lists of 'inputs' and 'outputs'.")
    if len(inputs) != len(outputs):
        raise DataError(f"{len(inputs)} inputs and {len(outputs)} outputs cannot belong together: {show(given)}.")
    if bad := [value for value in inputs if not isinstance(value, str if name is None else list)]:
        kind = "a text for standard input" if name is None else f"a list of arguments of {name}"
        raise DataError(f"the input {show(bad[0])} is not {kind}: correct the problem {show(given)}.")
    if name is None and any(not isinstance(value, str) for value in outputs):
        raise DataError(f"an output of {show(given)} is no text: give what the program should print.")
    if all(value in (None, [], [None], [[]]) if name else not value.strip() for value in outputs):
        raise DataError(f"every output of {show(given)} is empty, so a program that does nothing would pass.")
    return CodeProblem(
        fn_name=name,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        wrapped=bool(given.get("wrapped")),
        prefix=given.get("prefix", ""),
    )


def _undefined(trees: Iterable[ast.AST]) -> list[str]:
    """Returns names that the tests read and do not bind, which the program has to define."""
    read: set[str] = set()
    bound = set(dir(builtins))
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return sorted(read - bound)
