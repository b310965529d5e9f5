"""Public collections of code problems, by small stand-ins in their formats."""

import json
from typing import Any

import pytest
from code_helpers import CHAT, RIGHT, WRONG, fenced, load
from dataset_rows import DEEPCODER_ROWS, HUMANEVAL_ROW, MBPP_ROWS

from autolayer.core.errors import DataError
from autolayer.tasks.code import public
from autolayer.tasks.code.code_task import make_code_reward
from autolayer.tasks.code.problems import parse_problem
from autolayer.tasks.code.public import deepcoder_question, humaneval_question, mbpp_question, usable


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
    assert make_code_reward()([CHAT] * 2, programs, problem=[question.problem] * 2) == [1.0, 0.0]


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
    tests = [{"type": "stdin_stdout", "input": "x" * n, "output": "y"} for n in range(50)]
    problem = parse_problem(deepcoder_question({"problem": "p", "tests": json.dumps(tests)}).problem)
    assert {len(text) for text in problem.inputs} == set(range(30, 50))


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("configuration", MBPP_ROWS)
def test_mbpp(configuration: str) -> None:
    question = mbpp_question(MBPP_ROWS[configuration])
    assert MBPP_ROWS[configuration]["test_list"][0] in question.text
    programs = [fenced(f"def square(n): {body}") for body in (RIGHT, WRONG)]
    assert make_code_reward()([CHAT] * 2, programs, problem=[question.problem] * 2) == [1.0, 0.0]


@pytest.mark.usefixtures("_sandbox")
def test_humaneval_continues_its_header_and_keeps_its_helpers_for_itself() -> None:
    question = humaneval_question(HUMANEVAL_ROW)
    bodies = ["    return n * n\n", "    return n\n", "    return 9\n\n\ndef helper(n):\n    return 9\n"]
    problems = [question.problem] * 3
    assert make_code_reward()([question.prefix] * 3, bodies, problem=problems) == [1.0, 0.0, 0.0]
    cheat = "def square(n): return 5\ndef helper(n): return 5\nabs = lambda x: 0"
    replies = [fenced("def square(n): return n * n"), fenced(cheat), fenced("def other(n): return n * n")]
    assert make_code_reward()([CHAT] * 3, replies, problem=problems) == [1.0, 0.0, 0.0]


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
