"""`code:expr`: its problems, what it pays for, and the text that small models learn it from."""

import random
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from code_helpers import load

from autolayer.tasks.base import SPLITS
from autolayer.tasks.code import expr

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from expr_writers import expr_line  # noqa: E402


def test_expr_problems_are_many_and_in_one_split_each() -> None:
    prompts = {split: {row["prompt"] for row in expr.expr_problems(split, 5000)} for split in SPLITS}
    assert len(prompts["train"]) >= 2000 and min(map(len, prompts.values())) >= 256
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values()))
    assert expr.expr_problems("train", 10) == expr.expr_problems("train", 100)[:10]


def test_expr_lines_are_short_and_plain() -> None:
    rng = random.Random(0)
    lines = [expr_line(rng) for _ in range(5000)]
    lines += [row["prompt"] + row["answer"] for row in expr.expr_problems("train", 3000)]
    allowed = set(string.ascii_letters + string.digits + string.punctuation + " ")
    assert max(map(len, lines)) <= 45 and set("".join(lines)) <= allowed
    assert all(expr.is_short_expression(line.partition("=")[2]) for line in lines)
    assert max(len(row["answer"]) for row in expr.expr_problems("train", 3000)) <= 12
    assert [expr_line(random.Random(3)) for _ in range(2)] == [expr_line(random.Random(3))] * 2


def test_expr_answers_have_the_wanted_outputs() -> None:
    for row in expr.expr_problems("eval", 400):
        function = eval(f"lambda {row['names']}: {row['answer']}")
        assert [function(*pair) for pair in row["inputs"]] == row["outputs"], row
        assert all(0 not in pair for pair in row["inputs"])


def read_at_random(row: dict[str, Any], rng: random.Random) -> str:
    a, b = row["names"].split(",")
    then = row["prompt"].partition(": ")[2].rstrip("=").partition(",")[2]
    return expr.expression(rng.choice(expr.READINGS[row["kind"]]), then, a, b)


@pytest.mark.usefixtures("_sandbox")
def test_expr_rewards_the_wanted_reading() -> None:
    task, answers = load("code:expr"), [row["answer"] for row in expr.expr_problems("train", 240)]
    rows = task.splits["train"][:240]
    assert task.score(rows, answers) == [1.0] * len(rows), "the oracle"
    rng = random.Random(0)
    rate = sum(task.score(rows, [read_at_random(row, rng) for row in rows])) / len(rows)
    assert 0.2 < rate < 0.6, "RL has something to win"
    by_kind = {row["kind"] for row, reward in zip(rows, task.score(rows, answers), strict=True) if reward}
    assert by_kind == set(expr.READINGS)


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
    row = {**expr.expr_problems("train", 1)[0]}
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
    assert expr.is_short_expression(text) == formed


@pytest.mark.usefixtures("_sandbox")
def test_a_chat_model_gets_expr_as_messages() -> None:
    task = load("code:expr", chat=True)
    assert task.is_chat and task.splits["train"][0]["prompt"][0]["content"].splitlines()[1].startswith("def f(")
    answer = expr.expr_problems("train", 1)[0]["answer"]
    assert task.score(task.splits["train"][:1], [answer]) == [1.0]
