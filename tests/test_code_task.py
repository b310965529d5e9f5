"""The code tasks: the forms of a problem, the program in a completion, public formats, and `code:expr`."""

from __future__ import annotations

import json
import os
import random
import string
from typing import Any

import pytest

from autolayer.config import Config
from autolayer.errors import DataError, SandboxError
from autolayer.tasks import TASKS, load_task
from autolayer.tasks.code import code_task, expr, opening, public
from autolayer.tasks.code.code_task import SMALL, make_reward, small_questions
from autolayer.tasks.code.grade import same_text, same_value
from autolayer.tasks.code.problems import parse_problem
from autolayer.tasks.code.programs import is_answer, program_of
from autolayer.tasks.code.public import deepcoder_question, humaneval_question, mbpp_question, usable

CHAT = [{"role": "user", "content": "Square a number."}]


@pytest.fixture
def _sandbox() -> None:
    try:
        opening.open_sandbox()
    except SandboxError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


def load(name: str, *, chat: bool = False) -> Any:
    return load_task(Config(model="m", task=name), chat=chat)


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


HEADER = 'def square(n):\n    """Squares."""\n'


@pytest.mark.parametrize(
    ("prompt", "completion", "prefix", "program"),
    [
        ("Square.\n```python\n", "def f(): pass\n```\n```python\nother", "", "def f(): pass\n"),
        ("Square.\n```python\n", "def f(): pass", "", "def f(): pass"),
        ("Square.\n```python\n", "  \n", "", None),
        (HEADER, "    return n * n\n\nprint(square(2))", HEADER, HEADER + "    return n * n\n\n"),
        (HEADER, "    return n * n\ndef other(): pass", HEADER, HEADER + "    return n * n\n"),
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
    [("    return n * n\n", True), ("def f(): pass\n```\nBye", True), ("    return n *", False), ("", False)],
)
def test_whether_a_continuation_is_a_program(text: str, formed: bool) -> None:
    assert is_answer(text, chat=False) == formed


# The forms of a problem.

ASSERTS = {"tests": ["assert square(3) == 9", "assert square(-2) == 4"], "entry_point": "square"}
CALLS = {"fn_name": "square", "inputs": [[3], [-2]], "outputs": [9, 4]}
STDIN = {"inputs": ["3\n", "-2\n"], "outputs": ["9\n", "4\n"]}
RIGHT, HALF, WRONG = "return n * n", "return abs(n * 3) if n > 0 else 0", "return n"


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("problem", [ASSERTS, CALLS, STDIN], ids=["asserts", "calls", "stdin"])
def test_every_form_is_judged(problem: dict[str, Any], share: bool) -> None:
    reward = make_reward(share=share)
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
    assert make_reward()([CHAT], [fenced(program)], problem=[CALLS]) == [1.0]


@pytest.mark.usefixtures("_sandbox")
def test_a_tuple_stands_for_a_list_and_a_wrapped_output_for_its_value() -> None:
    problem = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1, 1]], [[2, 2]]], "wrapped": True}
    assert make_reward()([CHAT], [fenced("f = lambda n: (n, n)")], problem=[problem]) == [1.0]
    assert make_reward()([CHAT], [fenced("f = lambda n: (n, n)")], problem=[{**problem, "wrapped": False}]) == [0.0]


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [("1 2\n", "1 2", True), ("1  2 \n\n", "1 2\n", True), ("1\n2", "1 2", False), ("0.50000001", "0.5", True),
     ("1", "1.0", True), ("1.0", "1", False), ("nan", "0.5", False), ("x", "0.5", False), ("", "", True)],
)  # fmt: skip
def test_outputs_are_compared_by_words(found: str, wanted: str, same: bool) -> None:
    assert same_text(found, wanted) == same


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [(1, 1, True), (True, 1, False), (1, True, False), (1.0, 1, True), ((1, [2]), [1, [2]], True),
     ({1: 2}, {"1": 2}, True), ("1", 1, False), (None, None, True), (10**400, 1.0, False),
     (10**17 + 1, 10**17, False), ([1], [1, 2], False), (float("nan"), 1.0, False), ({1}, [1], False)],
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
        ("{", "not valid JSON"),
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


# Public collections, by small stand-ins in their formats.

SQUARES = (("3\n", "9\n"), ("12", "144"))
SQUARE_STDIN = [{"type": "stdin_stdout", "input": n, "output": square} for n, square in SQUARES]
DEEPCODER_ROWS = {
    "primeintellect": {"problem": "Square it.", "tests": json.dumps(SQUARE_STDIN)},
    "primeintellect, a function": {
        "problem": "Square it.",
        "tests": json.dumps([{"type": "function_call", "fn_name": "square", "input": [3], "output": [9]}]),
    },
    "taco": {"problem": "Square it.", "tests": json.dumps({"inputs": ["3\n"], "outputs": ["9\n"]})},
    "taco, lines": {"problem": "Square it.", "tests": json.dumps({"inputs": [["3", "x"]], "outputs": [["9"]]})},
    "taco, a function": {
        "problem": "Square it.",
        "tests": json.dumps({"fn_name": "square", "inputs": [[3]], "outputs": [[9]]}),
    },
    "lcbv5": {"problem": "Square it.", "tests": json.dumps([{"testtype": "stdin", "input": "3", "output": "9"}])},
    "lcbv5, a function": {
        "problem": "Square it.",
        "starter_code": "class Solution:\n    def square(self, n: int) -> int:\n        ",
        "tests": json.dumps(
            [{"testtype": "functional", "input": "3", "output": "9", "metadata": {"func_name": "square"}}]
        ),
    },
}


@pytest.mark.usefixtures("_sandbox")
def test_what_a_program_may_use_is_not_its_own() -> None:
    problem = json.dumps({"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]})
    method = json.dumps({"fn_name": "accumulate", "inputs": [[[1, 2]]], "outputs": [3]})
    programs = ["pass", "def gcd(a, b): return b and gcd(b, a % b) or a", "from math import gcd"]
    assert make_reward()([CHAT] * 3, list(map(fenced, programs)), problem=[problem] * 3) == [0.0, 1.0, 0.0]
    solution = "class Solution:\n    def accumulate(self, a): return sum(a)"
    assert make_reward()([CHAT], [fenced(solution)], problem=[method]) == [1.0]


@pytest.mark.usefixtures("_sandbox")
def test_a_key_that_python_cannot_write_is_a_wrong_answer() -> None:
    problem = json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [{"1": 1}]})
    assert make_reward()([CHAT], [fenced("def f(x): return {10**5000: 1}")], problem=[problem]) == [0.0]


def test_a_malformed_row_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    row = {"problem": "x", "tests": json.dumps({"fn_name": "f", "inputs": [5], "outputs": [5]})}
    good = DEEPCODER_ROWS["taco"]
    assert len(usable("deepcoder", [good] * 9 + [row], deepcoder_question)) == 9
    assert "1 of 10 problems are left out" in caplog.text


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("kind", DEEPCODER_ROWS)
def test_deepcoder_in_every_dialect(kind: str) -> None:
    question = deepcoder_question(DEEPCODER_ROWS[kind])
    assert question.text.startswith("Square it.\n\n")
    ending = "" if "function" in kind else "\nprint(square(int(input())))"
    programs = [fenced(f"def square(n): {body}{ending}") for body in (RIGHT, "return n + 1")]
    assert make_reward()([CHAT] * 2, programs, problem=[question.problem] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("[]", "has no tests"),
        ("{}", "has no tests"),
        ("{", "not valid JSON"),
        ('"text"', "unknown kind"),
        ('[{"testtype": "functional", "input": "1", "output": "1"}]', "does not say which function"),
        ('[{"type": "stdin", "input": "1", "output": "1"}, {"type": "x", "fn_name": "f"}]', "several kinds"),
    ],
)
def test_rows_of_deepcoder_that_cannot_be_used(tests: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        deepcoder_question({"problem": "Square it.", "tests": tests})


def test_the_hardest_tests_are_kept() -> None:
    tests = [{"type": "stdin_stdout", "input": "x" * n, "output": ""} for n in range(50)]
    problem = parse_problem(deepcoder_question({"problem": "p", "tests": json.dumps(tests)}).problem)
    assert {len(text) for text in problem.inputs} == set(range(30, 50))


MBPP_ROWS = {
    "full": {"text": "Write a function to square.", "code": "", "test_list": ["assert square(3) == 9"],
             "test_setup_code": "", "challenge_test_list": []},
    "sanitized": {"prompt": "Write a function to square.", "code": "", "test_imports": ["import math"],
                  "test_list": ["assert math.isclose(square(3), 9)", "assert set(square(n) for n in (1, -1)) == {1}"]},
}  # fmt: skip
HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef helper(n):\n    return n\n\n\ndef square(n: int) -> int:\n    """Squares."""\n',
    "entry_point": "square",
    "canonical_solution": "    return n * n\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(3) == helper(9)\n"
    "    for n in range(5):\n        assert abs(candidate(n) - n**2) < 1e-6\n",
}


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("configuration", MBPP_ROWS)
def test_mbpp(configuration: str) -> None:
    question = mbpp_question(MBPP_ROWS[configuration])
    assert MBPP_ROWS[configuration]["test_list"][0] in question.text
    programs = [fenced(f"def square(n): {body}") for body in (RIGHT, WRONG)]
    assert make_reward()([CHAT] * 2, programs, problem=[question.problem] * 2) == [1.0, 0.0]


@pytest.mark.usefixtures("_sandbox")
def test_humaneval_continues_its_header_and_keeps_its_helpers_for_itself() -> None:
    question = humaneval_question(HUMANEVAL_ROW)
    bodies = ["    return n * n\n", "    return n\n", "    return 9\n\n\ndef helper(n):\n    return 9\n"]
    problems = [question.problem] * 3
    assert make_reward()([question.prefix] * 3, bodies, problem=problems) == [1.0, 0.0, 0.0]
    cheat = "def square(n): return 5\ndef helper(n): return 5\nabs = lambda x: 0"
    replies = [fenced("def square(n): return n * n"), fenced(cheat), fenced("def other(n): return n * n")]
    assert make_reward()([CHAT] * 3, replies, problem=problems) == [1.0, 0.0, 0.0]


def test_unusable_rows_are_counted_and_too_many_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = MBPP_ROWS["full"], {"text": "t", "test_list": ["assert f(Node(1))"]}
    assert len(usable("mbpp", [good] * 9 + [bad], mbpp_question)) == 9
    assert "1 of 10 problems are left out, the first because the tests" in caplog.text
    with pytest.raises(DataError, match="2 of 3 problems of mbpp cannot be used"):
        usable("mbpp", [good, bad, bad], mbpp_question)


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data sets in place of the public ones."""

    def read_hub(repository: str, configuration: str | None, splits: Any) -> Any:
        if repository == public.HUMANEVAL:
            header = HUMANEVAL_ROW["prompt"]
            rows = [{**HUMANEVAL_ROW, "prompt": f"# {i}\n{header}"} for i in range(40)]
        elif repository == public.MBPP:
            row, key = MBPP_ROWS[str(configuration)], "text" if configuration == "full" else "prompt"
            return {split: [{**row, key: f"{split} {i}"} for i in range(10)] for split in splits}
        else:
            row = DEEPCODER_ROWS[str(configuration)]
            rows = [{**row, "problem": f"{configuration} {i}"} for i in range(20)]
        columns = set().union(*splits.values())
        assert all(columns <= set(row) for row in rows)
        return {split: rows for split in splits}

    monkeypatch.setattr(public, "read_hub", read_hub)


@pytest.mark.usefixtures("_sandbox", "_stand_ins")
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("name", "num_eval"), [("code", 50), ("code:mbpp", 10), ("code:humaneval", None)])
def test_public_collections_are_tasks(name: str, num_eval: int | None, chat: bool) -> None:
    task = load(name, chat=chat)
    assert task.name == name and task.is_chat == chat
    assert num_eval is None or len(task.splits["eval"]) == num_eval
    assert all(set(row) == {"prompt", "problem"} for rows in task.splits.values() for row in rows)
    if name == "code":
        train = str([row["prompt"] for split in ("train", "probe", "select") for row in task.splits[split]])
        assert all(part in train for part in public.DEEPCODER_PARTS)
    row = task.splits["eval"][0]
    assert task.score([row], [fenced("1")]) == [0.0]


@pytest.mark.usefixtures("_sandbox", "_stand_ins")
def test_base_and_chat_models_get_the_same_problems() -> None:
    plain, chat = load("code"), load("code", chat=True)
    for split, rows in plain.splits.items():
        assert [row["problem"] for row in rows] == [row["problem"] for row in chat.splits[split]]


@pytest.mark.usefixtures("_sandbox")
def test_without_the_data_the_error_says_what_to_do() -> None:
    with pytest.raises(DataError, match="openai/openai_humaneval.*hf download openai/openai_humaneval"):
        load("code:humaneval")


def test_without_a_sandbox_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise SandboxError("there is none")

    monkeypatch.setattr(code_task, "open_sandbox", refuse)
    monkeypatch.setattr("autolayer.tasks.code.expr_task.open_sandbox", refuse)
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
        rewards = make_reward()([CHAT] * len(rows), [fenced(row[column]) for row in rows], problem=problems)
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


# code:expr


def test_expr_problems_are_many_and_in_one_split_each() -> None:
    prompts = {split: {row["prompt"] for row in expr.problems(split, 5000)} for split in expr.SPLITS}
    assert len(prompts["train"]) >= 2000 and min(map(len, prompts.values())) >= 256
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values()))
    assert expr.problems("train", 10) == expr.problems("train", 100)[:10]
    with pytest.raises(ValueError, match="split is 'test'"):
        expr.problems("test", 1)


def test_expr_lines_are_short_and_plain() -> None:
    rng = random.Random(0)
    lines = [expr.corpus(rng) for _ in range(5000)]
    lines += [row["prompt"] + row["answer"] for row in expr.problems("train", 3000)]
    allowed = set(string.ascii_letters + string.digits + string.punctuation + " ")
    assert max(map(len, lines)) <= 45 and set("".join(lines)) <= allowed
    assert all(expr.is_well_formed(line.partition("=")[2]) for line in lines)
    assert max(len(row["answer"]) for row in expr.problems("train", 3000)) <= 12
    assert [expr.corpus(random.Random(3)) for _ in range(2)] == [expr.corpus(random.Random(3))] * 2


def test_expr_answers_have_the_wanted_outputs() -> None:
    for row in expr.problems("eval", 400):
        function = eval(f"lambda {row['names']}: {row['answer']}")
        assert [function(*pair) for pair in row["inputs"]] == row["outputs"], row
        assert all(0 not in pair for pair in row["inputs"])


def read_at_random(row: dict[str, Any], rng: random.Random) -> str:
    a, b = row["names"].split(",")
    then = row["prompt"].partition(": ")[2].rstrip("=").partition(",")[2]
    return expr.expression(rng.choice(expr.readings(row["kind"])), then, a, b)


@pytest.mark.usefixtures("_sandbox")
def test_expr_rewards_the_wanted_reading() -> None:
    task, answers = load("code:expr"), [row["answer"] for row in expr.problems("train", 240)]
    rows = task.splits["train"][:240]
    assert task.score(rows, answers) == [1.0] * len(rows), "the oracle"
    rng = random.Random(0)
    rate = sum(task.score(rows, [read_at_random(row, rng) for row in rows])) / len(rows)
    assert 0.2 < rate < 0.6, "RL has something to win"
    by_kind = {row["kind"] for row, reward in zip(rows, task.score(rows, answers), strict=True) if reward}
    assert by_kind == set(expr.KINDS)


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("ANSWER", 1.0), (" ANSWER<eos><pad>", 1.0), ("(ANSWER)", 1.0), ("ANSWER#x", 1.0), ("1*(ANSWER)", 1.0),
        ("float(ANSWER)", 0.0), ("ANSWER,", 0.0), ("ANSWER)", 0.0), ("ANSWER\nx", 0.0), ("return ANSWER", 0.0),
        ("", 0.0), ("a-", 0.0), ("exit(0)", 0.0), ("f", 0.0), ("9**9**9", 0.0), ("1/0", 0.0), ("\0", 0.0), ("(((", 0.0),
    ],
)  # fmt: skip
def test_expr_rewards_values_alone(text: str, earned: float) -> None:
    row = {**expr.problems("train", 1)[0]}
    answer = row.pop("answer")
    task = load("code:expr")
    assert task.score([row], [text.replace("ANSWER", answer)]) == [earned]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("text", "formed"),
    [
        ("a-b", True),
        ("1if a else b", True),
        ("a-", False),
        ("", False),
        ("x" * 25, False),
        ("é", False),
        ("a\nb", False),
        ("a=b", False),
    ],
)
def test_expr_well_formed_is_an_expression(text: str, formed: bool) -> None:
    assert expr.is_well_formed(text) == formed


@pytest.mark.usefixtures("_sandbox")
def test_a_chat_model_gets_expr_as_messages() -> None:
    task = load("code:expr", chat=True)
    assert task.is_chat and task.splits["train"][0]["prompt"][0]["content"].splitlines()[1].startswith("def f(")
    answer = expr.problems("train", 1)[0]["answer"]
    assert task.score(task.splits["train"][:1], [answer]) == [1.0]
