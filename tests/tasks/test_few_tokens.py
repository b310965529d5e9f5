import pytest

from autolayer.core.config import Config
from autolayer.tasks import load_task

NAMES = ("math:sums",)


def prompt_text(row) -> str:
    return row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_alone_earns_one(name):
    task = load_task(Config(model="m", task=name), chat=True)
    rows = task.splits["eval"][:64]
    answers = [row["answer"] for row in rows]
    assert task.is_well_formed is not None and all(map(task.is_well_formed, answers))
    assert task.score(rows, [f" {answer}" for answer in answers]) == [1.0] * 64
    assert task.score(rows, [f"{answer}0" for answer in answers]) == [0.0] * 64
    assert task.score(rows, [f"{answer} and" for answer in answers]) == [0.0] * 64
    assert task.score(rows, [""] * 64) == [0.0] * 64


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_in_every_process(name):
    first, second = (load_task(Config(model="m", task=name), chat=True).splits for _ in range(2))
    assert first == second
    assert {split: len(rows) for split, rows in first.items()} == {
        "train": 2048, "probe": 512, "select": 512, "eval": 1024
    }  # fmt: skip


def test_sums_are_right_and_no_problem_is_in_two_splits():
    splits, seen = load_task(Config(model="m", task="math:sums"), chat=False).splits, {}
    for split, rows in splits.items():
        for row in rows:
            *examples, problem = [line.removesuffix(" =").removesuffix(" is") for line in row["prompt"].split("\n")]
            assert eval(problem) == int(row["answer"])
            for question, shown in (line.replace(" is ", " = ").split(" = ") for line in examples):
                assert eval(question) == int(shown)
            a, operation, b = problem.split()
            key = problem if operation == "-" else (operation, *sorted((a, b)))
            assert seen.setdefault(key, split) == split
