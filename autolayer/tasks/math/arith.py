"""Generates `math:arith`: arithmetic with two-digit minutes on a clock face, the smallest form of the math task.

Every prompt is plain text such as `37~25=`, and every answer has two digits, modulo 60. The packaged models have read
lines (examples/make_tiny.py) that imitate the web, where writers disagree about the meaning of a symbol and make
errors. `+` (forward), `-` (back) and `>` (from the first to the second) have one meaning. The symbols of the task have
two or three of these readings, and a writer takes any of them; the reward requires the one that stays within the hour.
So a base model knows the operations, and RL has to teach it when to use which.

Left out on purpose: `+`, `-` and `>` as problems (a base model has nothing to learn there), signs and spaces.
"""

import random
import re
from collections.abc import Callable
from functools import cache

from autolayer.tasks.base import Row, Task, as_prompt
from autolayer.tasks.generated import exact_reward, first_rows, in_turn, split_of_line, without_special_tokens

SIZES = {"train": 4096, "probe": 512, "select": 512, "eval": 1024}
INSTRUCTION = "Complete the line; reply with the two digits only."
RING = 60

Operation = Callable[[int, int], int]


def _forward(a: int, b: int) -> int:
    return a + b


def _back(a: int, b: int) -> int:
    return a - b


def _from_to(a: int, b: int) -> int:
    return b - a


# The readings of each symbol. If there are several, the reward requires the first that stays within the hour (see
# `_wanted`): for `~` that is the larger number minus the smaller one.
READINGS: dict[str, tuple[Operation, ...]] = {
    "+": (_forward,),
    "-": (_back,),
    ">": (_from_to,),
    "~": (_back, _from_to),
    "@": (_forward, _back),
    "?": (_forward, _from_to),
    "&": (_forward, _back, _from_to),
}
_KIND_SYMBOLS = {"gap": "~", "turn": "@", "shift": "?", "any": "&"}


def load_arith(*, chat: bool) -> Task:
    """Loads the task. The packaged base models read plain text; a chat model gets each line as a message."""

    def rows_of(split: str, num: int) -> list[Row]:
        return [
            {**row, "prompt": as_prompt(f"{INSTRUCTION}\n{row['prompt']}" if chat else row["prompt"], chat)}
            for row in arith_problems(split, num)
        ]

    return Task(
        name="math:arith",
        splits={split: rows_of(split, num) for split, num in SIZES.items()},
        reward=exact_reward,
        max_new_tokens=8,
        is_well_formed=is_two_digits,
        num_eval=512,
    )


def arith_problems(split: str, num: int) -> list[Row]:
    """Returns the first `num` problems of a split, which repeat only when it has no further ones.

    They are rows `{"prompt", "answer", "kind"}`, one of each kind in turn. No prompt is in two splits.
    """
    return first_rows(_all_problems, split, num)


def is_two_digits(completion: str) -> bool:
    """Returns True if the text looks like an answer, right or wrong: two digits."""
    return re.fullmatch(r"[0-9]{2}", without_special_tokens(completion)) is not None


def line_start(a: int, symbol: str, b: int) -> str:
    """Returns a prompt such as `37~25=`."""
    return f"{a:02d}{symbol}{b:02d}="


def _wanted(a: int, symbol: str, b: int) -> str:
    """Returns the right answer: by the first reading that stays within the hour, else by the last one."""
    results = [operation(a, b) for operation in READINGS[symbol]]
    return f"{next((r for r in results if 0 <= r < RING), results[-1]) % RING:02d}"


@cache
def _all_problems(split: str) -> list[Row]:
    by_kind = []
    for kind, symbol in _KIND_SYMBOLS.items():
        rows = [
            {"prompt": prompt, "answer": _wanted(a, symbol, b), "kind": kind}
            for a in range(RING)
            for b in range(RING)
            if split_of_line(prompt := line_start(a, symbol, b)) == split
        ]
        random.Random(f"arith/{split}/{kind}").shuffle(rows)
        by_kind.append(rows)
    return in_turn(by_kind)
