"""The code tasks: the program in a completion, the forms of a problem, the sandbox, and the problems that ship."""

import json
import time
from typing import Any

import pytest
from code_helpers import CHAT, HALF, RIGHT, WRONG, fenced, load

from autolayer.core.config import Config
from autolayer.core.errors import DataError, SandboxError
from autolayer.tasks import TASKS, load_task
from autolayer.tasks.code import code_task
from autolayer.tasks.code.code_task import SMALL, make_code_reward, small_questions
from autolayer.tasks.code.grade import same_text, same_value
from autolayer.tasks.code.problems import parse_problem
from autolayer.tasks.code.programs import is_answer, program_of
from autolayer.tasks.code.sandbox.jobs import Failed

# The program in a completion.


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nBetter:\n```py\nx = 2\n```\n", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nIt prints\n```text\n1\n```", "x = 1\n"),
        ("  ```python title\n  x = 1\n  ```", "x = 1\n"),
        ("<think>```python\nx = 1\n```</think>\n```python\nx = 2\n```", "x = 2\n"),
        ("<think>```python\nx = 1\n```", None),
        ("```python\nx = 1", None),
        ("```python\n\n```", None),
        ("x = 1", None),
        ("", None),
    ],
)
def test_the_program_of_a_reply(completion: str, program: str | None) -> None:
    assert program_of(CHAT, completion) == program
    assert is_answer(completion, chat=True) == (program is not None)


def test_a_long_reply_takes_no_long_time() -> None:
    start = time.process_time()
    for filling in ("_", " "):
        assert program_of(CHAT, f"```{filling * 50_000}\n{'x' * 50_000}") is None
    assert time.process_time() - start < 2


HEADER = 'def square(n):\n    """Squares."""\n'


@pytest.mark.parametrize(
    ("prompt", "completion", "prefix", "program"),
    [
        ("Square.\n```python\n", "def f(): pass\n```\n```python\nother", "", "def f(): pass\n"),
        ("Square.\n```python\n", "def f(): pass", "", "def f(): pass"),
        ("Square.\n```python\n", "  \n", "", None),
        (HEADER, "    return n * n\n\nprint(square(2))", HEADER, HEADER + "    return n * n\n\n"),
        (HEADER, "    return n * n\ndef other(): pass", HEADER, HEADER + "    return n * n\n"),
        (HEADER, "   n *= n\n    return n", HEADER, HEADER + "    n *= n\n    return n\n"),  # decoding dropped a blank
        (HEADER, "return n", HEADER, HEADER + "return n\n"),
        (HEADER, "", HEADER, None),
        ("Square a number.", fenced("def f(): pass"), "", "def f(): pass\n"),
    ],
)
def test_the_program_of_a_continuation(prompt: str, completion: str, prefix: str, program: str | None) -> None:
    assert program_of(prompt, completion, prefix) == program


def test_a_reply_keeps_the_imports_of_the_header() -> None:
    program = program_of(CHAT, fenced("def square(n): return n * n"), "import math\n" + HEADER)
    assert program is not None and program.startswith("import math") and program.count("def square") == 2


@pytest.mark.parametrize(
    ("text", "formed"),
    [
        ("    return n * n\n", True),
        ("   n *= n\n    return n", True),
        ("def f(): pass\n```\nBye", True),
        ("    return n *", False),
        ("", False),
    ],
)
def test_whether_a_continuation_is_a_program(text: str, formed: bool) -> None:
    assert is_answer(text, chat=False) == formed


# The forms of a problem.


ASSERTS = {"tests": ["assert square(3) == 9", "assert square(-2) == 4"], "entry_point": "square"}
CALLS = {"fn_name": "square", "inputs": [[3], [-2]], "outputs": [9, 4]}
STDIN = {"inputs": ["3\n", "-2\n"], "outputs": ["9\n", "4\n"]}


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("problem", [ASSERTS, CALLS, STDIN], ids=["asserts", "calls", "stdin"])
def test_every_form_is_judged(problem: dict[str, Any], share: bool) -> None:
    reward = make_code_reward(share=share)
    ending = "\nprint(square(int(input())))" if problem is STDIN else ""
    completions = [fenced(f"def square(n): {body}{ending}") for body in (RIGHT, HALF, WRONG)] + ["no program"]
    completions = [[{"role": "assistant", "content": text}] for text in completions]
    metrics: dict[str, float] = {}
    for given in (problem, json.dumps(problem)):
        rewards = reward([CHAT] * 4, completions, problem=[given] * 4, log_metric=metrics.__setitem__, answer=[0] * 4)
        assert rewards == [1.0, 0.5 if share else 0.0, 0.0, 0.0]
    assert metrics["programs/no_program"] == 0.25 and metrics["programs/ok"] > 0


@pytest.mark.usefixtures("_sandbox")
def test_a_method_of_solution_is_a_function_too() -> None:
    program = "class Solution:\n    def square(self, n: List[int]) -> Optional[int]:\n        return n * n"
    assert make_code_reward()([CHAT], [fenced(program)], problem=[CALLS]) == [1.0]


@pytest.mark.usefixtures("_sandbox")
def test_a_tuple_stands_for_a_list_and_a_wrapped_output_for_its_value() -> None:
    problem = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1, 1]], [[2, 2]]], "wrapped": True}
    assert make_code_reward()([CHAT], [fenced("f = lambda n: (n, n)")], problem=[problem]) == [1.0]
    assert make_code_reward()([CHAT], [fenced("f = lambda n: (n, n)")], problem=[{**problem, "wrapped": False}]) == [
        0.0
    ]


@pytest.mark.usefixtures("_sandbox")
def test_what_a_program_may_use_is_not_its_own() -> None:
    problem = json.dumps({"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]})
    method = json.dumps({"fn_name": "accumulate", "inputs": [[[1, 2]]], "outputs": [3]})
    programs = ["pass", "def gcd(a, b): return b and gcd(b, a % b) or a", "from math import gcd"]
    assert make_code_reward()([CHAT] * 3, list(map(fenced, programs)), problem=[problem] * 3) == [0.0, 1.0, 0.0]
    solution = "class Solution:\n    def accumulate(self, a): return sum(a)"
    assert make_code_reward()([CHAT], [fenced(solution)], problem=[method]) == [1.0]


@pytest.mark.usefixtures("_sandbox")
def test_a_key_that_python_cannot_write_is_a_wrong_answer() -> None:
    problem = json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [{"1": 1}]})
    assert make_code_reward()([CHAT], [fenced("def f(x): return {10**5000: 1}")], problem=[problem]) == [0.0]


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [("1 2\n", "1 2", True), ("1  2 \n\n", "1 2\n", True), ("1\n2", "1 2", False), ("0.50000001", "0.5", True),
     ("1", "1.0", True), ("1.0", "1", False), ("nan", "0.5", False), ("x", "0.5", False), ("", "", True),
     ("1000000500000.0", "1000000000000", False), ("1000000500000.0", "1000000000000.0", False)],
)  # fmt: skip
def test_outputs_are_compared_by_words(found: str, wanted: str, same: bool) -> None:
    assert same_text(found, wanted) == same


def test_a_flood_of_words_costs_nothing() -> None:
    start = time.process_time()
    assert not same_text("1 " * (1 << 24), "1 1")
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [(1, 1, True), (True, 1, False), (1, True, False), (1.0, 1, True), ([1, [2]], [1, [2]], True),
     ({"1": 2}, {"1": 2}, True), ({"1": 2}, {"1": 3}, False), ({}, {"1": 2}, False), ("1", 1, False),
     (None, None, True), (10**400, 1.0, False), (10**17 + 1, 10**17, False), ([1], [1, 2], False),
     (float("nan"), 1.0, False), (1000000500000.0, 1000000000000, False), (1000000500000.0, 1000000000000.0, False),
     (7.0000000001, 7, False), (0.1 + 0.2, 0.3, True), (1e15 + 1.0, 1e15, True), (True, 1.0, False), (0, None, False),
     (Failed("ValueError"), "ValueError", False)],
)  # fmt: skip
def test_values_are_compared_by_kind(found: Any, wanted: Any, same: bool) -> None:
    assert same_value(found, wanted) == same


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({}, "has no tests"),
        ({"tests": []}, "no list with a test"),
        ({"tests": None, "inputs": None}, "has no tests"),
        ({"tests": "assert f()"}, "no list with a test"),
        ({"tests": ["f(2)"]}, "asserts nothing"),
        ({"tests": ["assert f(2"]}, "no Python"),
        ({"tests": ["assert True"]}, "use nothing that a program defines"),
        ({"tests": ["assert depth(Node(1)) == 1"]}, "use Node, .*like a class"),
        ({"inputs": [], "outputs": []}, "has no tests"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "1 inputs and 2 outputs"),
        ({"inputs": [[1]], "outputs": ["1"]}, "not a text for standard input"),
        ({"inputs": ["1"], "outputs": [1]}, "is no text"),
        ({"fn_name": "f", "inputs": [1], "outputs": [1]}, "not a list of arguments of f"),
        ({"fn_name": "f", "inputs": ["12"], "outputs": [1]}, "not a list of arguments of f"),
        ({"inputs": ["1\n", "2\n"], "outputs": ["", "\n"]}, "every output .* is empty"),
        ({"fn_name": "f", "inputs": [[1], [2]], "outputs": [None, [None]]}, "every output .* is empty"),
        ({"tests": ["x = [3, 1]\nsort(x)\nassert x == [1, 3]"]}, "calls sort and ignores what it returns"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"fn_name": "f", "inputs": [[1]], "outputs": [' + "9" * 5000 + "]}", "not valid JSON"),
        ("3", "is a int"),
        ({"fn_name": "f", "inputs": [[{1}]], "outputs": [1]}, "not valid JSON .*set"),
        (3, "is a int"),
    ],
)
def test_problems_that_cannot_be_used(problem: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_problem(problem)


def test_what_the_tests_need_of_the_program() -> None:
    tests = ["import math as m\nassert m.isclose(f(2), g(x) + sum(i for i in [1]))", "for k in [1]: assert f(k) == 1"]
    assert parse_problem({"tests": tests, "setup": "x = 1"}).functions == ("f", "g")
    assert parse_problem({"tests": ["assert g(1)"], "entry_point": "f"}).functions == ("f", "g")
    found = parse_problem({"tests": ["assert math.isclose(area(1), math.pi)"]})
    assert found.functions == ("area",) and found.setup.startswith("import math\n"), "the program would import it"


# The sandbox that a task asks for.


def test_without_a_sandbox_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise SandboxError("there is none")

    monkeypatch.setattr(code_task, "open_sandbox", refuse)
    monkeypatch.setattr("autolayer.tasks.code.expr.open_sandbox", refuse)
    names = [name for name, built_in in TASKS.items() if built_in.runs_programs]
    assert len(names) == 5
    for name in names:
        with pytest.raises(SandboxError, match="there is none"):
            load(name)


def test_the_permission_reaches_the_sandbox_and_changes_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(code_task, "open_sandbox", lambda **options: asked.append(options))
    plain, allowed = (Config(model="m", task="code:small", allow_unsandboxed=value) for value in (False, True))
    assert plain.signature == allowed.signature, "where a program runs does not change what it earns"
    load_task(allowed, chat=False)
    assert asked == [{"allow_unsandboxed": True}]


# The problems that ship.


@pytest.mark.usefixtures("_sandbox")
def test_reference_solutions_pass_and_wrong_ones_fail() -> None:
    rows = [json.loads(line) for line in SMALL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 40 and all(len(row["tests"]) >= 3 for row in rows)
    assert len({row["entry_point"] for row in rows}) == len(rows)
    problems = [question.problem for question in small_questions()]
    for column, reward in (("solution", 1.0), ("wrong", 0.0)):
        rewards = make_code_reward()([CHAT] * len(rows), [fenced(row[column]) for row in rows], problem=problems)
        assert rewards == [reward] * len(rows), [r["entry_point"] for r, x in zip(rows, rewards) if x != reward]  # noqa: B905


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("chat", [False, True])
def test_small_is_a_task_that_hides_its_solutions(chat: bool) -> None:
    task = load("code:small", chat=chat)
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 24,
        "probe": 8,
        "select": 8,
        "eval": 8,
    }
    for line in SMALL.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["solution"].splitlines()[-1] not in str(task.splits).replace("\\n", "\n")
    if not chat:
        assert task.splits["train"][0]["prompt"].endswith("```python\n")
