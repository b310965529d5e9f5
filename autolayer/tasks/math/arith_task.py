"""Loads `math:arith`, the generated problems of `arith` in the four splits."""

from collections.abc import Sequence
from typing import Any

from autolayer.tasks.base import Row, Task
from autolayer.tasks.math import arith
from autolayer.tasks.rewards import text_of

SIZES = {"train": 4096, "probe": 512, "select": 512, "eval": 1024}
INSTRUCTION = "Complete the line; reply with the two digits only."


def load_arith(*, chat: bool) -> Task:
    """Loads the task. The packaged base models read plain text; a chat model gets each line as a message."""
    return Task(
        name="math:arith",
        splits={split: _rows(split, num, chat) for split, num in SIZES.items()},
        reward=_reward,
        max_new_tokens=8,
        is_well_formed=arith.is_two_digits,
        num_eval=512,
    )


def _rows(split: str, num: int, chat: bool) -> list[Row]:
    rows = arith.arith_problems(split, num)
    if chat:
        for row in rows:
            row["prompt"] = [{"role": "user", "content": f"{INSTRUCTION}\n{row['prompt']}"}]
    return rows


def _reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    return arith.arith_reward(prompts, [text_of(completion) for completion in completions], **columns)
