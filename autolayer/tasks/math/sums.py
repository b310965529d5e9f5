"""Generates `math:sums`: small sums, differences and products after one worked example.

A prompt has two lines, such as `3 + 4 = 7` and `6 * 9 =`, and the answer is the number.
"""

import random
from collections.abc import Sequence

from autolayer.tasks.base import Task
from autolayer.tasks.few_tokens import Problem, few_token_task
from autolayer.tasks.generated import without_special_tokens

SIGNS = (" =", " is")


def load_sums(*, chat: bool) -> Task:
    """Loads the task. Every model reads plain text, which is what the numbers in the log were measured with."""
    return few_token_task("math:sums", _problems(), _write, max_new_tokens=4, stop="\n", is_well_formed=is_number)


def _problems() -> list[Problem]:
    pairs = [(a, b) for a in range(2, 21) for b in range(2, 21)]
    found = [Problem(f"{min(a, b)} + {max(a, b)}", f"{a} + {b}", str(a + b)) for a, b in pairs]
    found += [Problem(f"{a} - {b}", f"{a} - {b}", str(a - b)) for a, b in pairs if a >= b]
    return found + [
        Problem(f"{min(a, b)} * {max(a, b)}", f"{a} * {b}", str(a * b)) for a, b in pairs if max(a, b) <= 12
    ]


def _write(problem: Problem, examples: Sequence[Problem], rng: random.Random) -> str:
    sign = rng.choice(SIGNS)
    lines = [f"{each.question}{sign} {each.answer}" for each in examples]
    return "\n".join([*lines, f"{problem.question}{sign}"])


def is_number(completion: str) -> bool:
    """Returns True if the text is a number, right or wrong."""
    return without_special_tokens(completion).isdecimal()
