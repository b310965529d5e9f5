import functools
import itertools
import re

import pytest

from autolayer.core.config import Config
from autolayer.core.errors import DataError
from autolayer.tasks import Task, load_task
from autolayer.tasks.agent.guess import Guess

NAMES = (
    "math:sums", "math:larger", "math:format", "words:opposites", "words:kinds", "words:sequence", "words:copy",
)  # fmt: skip
SIZES = {"train": 2048, "probe": 512, "select": 512, "eval": 1024}
CHAT = {"math:format", "words:kinds"}


@functools.cache
def load(name: str) -> Task:
    return load_task(Config(model="m", task=name), chat=True)


def text_of(prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_alone_earns_one(name):
    task = load(name)
    rows = task.splits["eval"][:64]
    answers = [row["answer"] for row in rows]
    assert task.is_chat == (name in CHAT) and {split: len(rows) for split, rows in task.splits.items()} == SIZES
    assert task.is_well_formed is None or all(map(task.is_well_formed, answers))
    for end in ("", task.stop or ""):
        assert task.score(rows, [f" {answer}{end}" for answer in answers]) == [1.0] * 64
    if task.is_chat:
        assert task.score(rows, [f"<think>\n{answer}?\n</think>\n\n{answer}" for answer in answers]) == [1.0] * 64
        assert task.score(rows, [f"<think>\n{answer}" for answer in answers]) == [0.0] * 64
    assert task.score(rows, [f"{answer}0" for answer in answers]) == [0.0] * 64
    assert task.score(rows, [f"{answer} and" for answer in answers]) == [0.0] * 64
    assert task.score(rows, [""] * 64) == [0.0] * 64


def test_sums_are_right_and_no_problem_is_in_two_splits():
    splits, seen = load("math:sums").splits, {}
    for split, rows in splits.items():
        for row in rows:
            *examples, problem = [line.removesuffix(" =").removesuffix(" is") for line in row["prompt"].split("\n")]
            assert eval(problem) == int(row["answer"])
            for question, shown in (line.replace(" is ", " = ").split(" = ") for line in examples):
                assert eval(question) == int(shown)
            a, operation, b = problem.split()
            key = problem if operation == "-" else (operation, *sorted((a, b)))
            assert seen.setdefault(key, split) == split


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("math:larger", r"(\d\d, \d\d -> \d\d\n){3}\d\d, \d\d ->"),
        ("math:format", r"Answer with the number only\.\n\d+ \+ \d+\n(= |x = |-> )\d+\n\d+ \+ \d+"),
        ("words:sequence", r"(\w+, ){3}\w+,"),
        ("words:copy", r"(\w+ \w+ \w+ -> \w+\n){3}\w+ \w+ \w+ ->"),
    ],
)
def test_the_answer_follows_from_the_prompt(name, shape):
    solve = {"math:larger": larger, "math:format": formatted, "words:sequence": following, "words:copy": copied}[name]
    for rows in load(name).splits.values():
        for row in rows[:256]:
            text = text_of(row["prompt"])
            assert re.fullmatch(shape, text) and row["answer"] == solve(text), row


def larger(text: str) -> str:
    return str(max(map(int, re.findall(r"\d+", text)[-2:])))


def copied(text: str) -> str:
    *examples, (*words,) = [re.findall(r"\w+", line) for line in text.split("\n")]
    (place,) = {line[:3].index(line[3]) for line in examples}
    return words[place]


def following(text: str) -> str:
    terms = text.rstrip(",").split(", ")
    if terms[0].isalpha():
        return chr(2 * ord(terms[-1]) - ord(terms[-2]))
    steps = {int(b) - int(a) for a, b in itertools.pairwise(terms)}
    assert len(steps) == 1
    return str(int(terms[-1]) + steps.pop())


def formatted(text: str) -> str:
    _, _, reply, question = text.split("\n")
    return re.sub(r"\d+", str(sum(map(int, question.split(" + ")))), reply)


def test_kinds_are_asked_for_as_often_as_not():
    rows = load("words:kinds").splits["train"]
    assert 0.4 < sum(row["answer"] == "yes" for row in rows) / len(rows) < 0.6
    for name in CHAT:
        with pytest.raises(
            DataError, match=f"the prompts of '{name}' are messages, and the model has no chat template"
        ):
            load_task(Config(model="m", task=name), chat=False)


def test_a_game_of_guesses():
    task = load("agent:guess")
    assert {split: len(rows) for split, rows in task.splits.items()} == SIZES
    shown = [{row["prompt"] for row in rows} for rows in task.splits.values()]
    assert not set.intersection(*shown) and len(set.union(*shown)) == sum(map(len, shown))
    assert {row["number"] for row in task.splits["eval"]} == set(range(1, 10))
    game = Guess()
    assert game.reset({"number": 7}) == ""
    assert [game.step(guess) for guess in ("5", "nine", "</think>8", "7<eos>")] == [
        ("higher", 0.0, False), ("A number from 1 to 9.", 0.0, False), ("lower", 0.0, False), ("right", 1.0, True)
    ]  # fmt: skip
