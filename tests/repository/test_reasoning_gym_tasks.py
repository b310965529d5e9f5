"""examples/reasoning_gym_tasks.py: data sets of reasoning-gym as tasks."""

from pathlib import Path

import pytest

from autolayer.core.config import Config
from autolayer.core.errors import UnknownNameError
from autolayer.tasks import load_task

FILE = Path(__file__).parents[2] / "examples" / "reasoning_gym_tasks.py"


@pytest.mark.parametrize("chat", [False, True])
def test_a_data_set_is_a_task(chat: bool) -> None:
    task = load_task(Config(model="m", task=f"{FILE}:gcd"), chat=chat)
    rows = task.splits["eval"][:8]
    assert task.is_chat == chat and len(task.splits["select"]) > 200
    assert task.score(rows, [f"So <answer>{row['answer']}</answer>." for row in rows]) == [1.0] * 8
    assert task.score(rows, ["<answer>no</answer>", *[row["answer"] for row in rows[1:]]]) == [0.0] * 8


def test_scorers_that_evaluate_are_not_offered() -> None:
    with pytest.raises(UnknownNameError, match="has no 'countdown'"):
        load_task(Config(model="m", task=f"{FILE}:countdown"), chat=False)
