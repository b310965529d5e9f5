"""`math:arith`: arithmetic with two-digit minutes on a clock face, the smallest form of the math task.

Every prompt is plain text such as `37~25=`, every answer two digits, modulo 60. The pretraining lines of `corpus`
imitate the web, where people disagree about what a symbol means, and err. `+` (forward), `-` (back) and `>` (from the
first to the second) mean one thing to everybody. The symbols of the task have two or three of these readings, and a
writer takes any of them; the reward wants the one that stays within the hour. So a base model knows the operations,
and RL has to teach it when to use which.

Left out on purpose: `+`, `-` and `>` as problems (the base model has nothing left to win there), signs and spaces.
Standard library only.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

RING = 60
SPLITS = ("train", "probe", "select", "eval")
ERROR_SHARE = 0.05  # of the pretraining lines: one digit is off by one

Operation = Callable[[int, int], int]


def _forward(a: int, b: int) -> int:
    return a + b


def _back(a: int, b: int) -> int:
    return a - b


def _from_to(a: int, b: int) -> int:
    return b - a


# What writers mean by each operator. Where there are several readings, the reward wants the first that stays within
# the hour (see `_wanted`): for `~` that is the bigger number minus the smaller one.
_READINGS: dict[str, tuple[Operation, ...]] = {
    "+": (_forward,),
    "-": (_back,),
    ">": (_from_to,),
    "~": (_back, _from_to),
    "@": (_forward, _back),
    "?": (_forward, _from_to),
    "&": (_forward, _back, _from_to),
}
_KIND_SYMBOLS = {"gap": "~", "turn": "@", "shift": "?", "any": "&"}
KINDS: tuple[str, ...] = tuple(_KIND_SYMBOLS)


def problems(split: str, num: int) -> list[dict]:
    """Returns the first `num` problems of a split.

    Args:
        split: `train`, `probe`, `select` or `eval`; no prompt is in two of them.
        num: Number of rows. Prompts repeat only when the split has no further ones.

    Returns:
        Rows `{"prompt", "answer", "kind"}`, the kinds in turn; a larger request begins with the smaller one.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    rows = _all_problems(split)
    return [dict(rows[i % len(rows)]) for i in range(num)]


def reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """Scores completions in TRL's signature: 1.0 for exactly the answer, else 0.0."""
    return [float(_clean(text) == wanted) for text, wanted in zip(completions, answer, strict=True)]


def is_well_formed(completion: str) -> bool:
    """Whether the text looks like an answer, right or wrong: two digits."""
    return re.fullmatch(r"[0-9]{2}", _clean(completion)) is not None


def corpus(rng: random.Random) -> str:
    """Returns one line of pretraining text, such as `37+25=02`, as some writer on the web would have it."""
    symbol = rng.choices(list(_READINGS))[0]
    a, b = rng.randrange(RING), rng.randrange(RING)
    answer = f"{rng.choice(_READINGS[symbol])(a, b) % RING:02d}"
    if rng.random() < ERROR_SHARE:
        place = rng.randrange(len(answer))
        digit = (int(answer[place]) + rng.choice((-1, 1))) % 10
        answer = f"{answer[:place]}{digit}{answer[place + 1 :]}"
    return _prompt(a, symbol, b) + answer


def _prompt(a: int, symbol: str, b: int) -> str:
    return f"{a:02d}{symbol}{b:02d}="


def _wanted(a: int, symbol: str, b: int) -> str:
    """The right answer: by the first reading that does not pass the full hour, else by the last one."""
    results = [operation(a, b) for operation in _READINGS[symbol]]
    return f"{next((r for r in results if 0 <= r < RING), results[-1]) % RING:02d}"


def _clean(completion: str) -> str:
    return re.sub(r"<(?:pad|eos|unk)>", "", completion).strip()


def _split_of(prompt: str) -> str:
    """Which split a prompt belongs to, for ever: about 70, 10, 10 and 10 in a hundred."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 10
    return SPLITS[max(0, bucket - 6)]


@cache
def _all_problems(split: str) -> list[dict]:
    """Every problem of a split, once: each kind shuffled by its own seed, then one of each kind in turn."""
    by_kind = []
    for kind, symbol in _KIND_SYMBOLS.items():
        rows = [
            {"prompt": prompt, "answer": _wanted(a, symbol, b), "kind": kind}
            for a in range(RING)
            for b in range(RING)
            if _split_of(prompt := _prompt(a, symbol, b)) == split
        ]
        random.Random(f"arith/{split}/{kind}").shuffle(rows)
        by_kind.append(rows)
    return [row for turn in zip_longest(*by_kind) for row in turn if row is not None]
