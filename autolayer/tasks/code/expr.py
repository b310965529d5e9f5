r"""`code:expr`: one expression for a function described in a word or two, the smallest form of the code task.

A prompt is `def f(p,q): gap,twice=`, the completion a Python expression such as `2*abs(p-q)`, and the sandbox runs it
on hidden arguments. The pretraining lines of `corpus` imitate the web, where people disagree about what a word means,
and err. `apart` or `over` mean one thing to everybody. The words of the task have two or three readings, and a writer
takes any of them; the reward always wants the first. So a base model knows the operations, and RL has to teach it which
one is meant.

Left out on purpose: the words with one reading as problems (the base model has nothing left to win there), and
statements.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Callable
from functools import cache
from itertools import permutations, zip_longest
from typing import Any

from autolayer.tasks.python_text import parse

SPLITS = ("train", "probe", "select", "eval")
ERROR_SHARE = 0.05  # of the pretraining lines: one sign is another one
MAX_EXPRESSION = 24  # characters; the longest wanted one has 11
NUM_PAIRS = 120  # of variable names, for each pair of words

# What writers mean by each word about a and b. The reward wants the first reading.
_PLAIN: dict[str, tuple[str, ...]] = {
    "plus": ("a+b",),
    "minus": ("a-b",),
    "apart": ("abs(a-b)",),
    "over": ("a//b",),
    "mod": ("a%b",),
    "max": ("max(a,b)",),
    "min": ("min(a,b)",),
}
_AMBIGUOUS: dict[str, tuple[str, ...]] = {
    "less": ("b-a", "a-b"),
    "gap": ("abs(a-b)", "a-b", "b-a"),
    "share": ("a//b", "b//a", "a%b"),
    "rest": ("a%b", "b%a"),
    "top": ("max(a,b)", "a"),
    "low": ("min(a,b)", "b"),
}
KINDS: tuple[str, ...] = tuple(_AMBIGUOUS)

# What the second word does with the first one's value.
_THEN: dict[str, str] = {"": "E", "twice": "2*P", "thrice": "3*P", "next": "E+1", "half": "P//2", "flip": "-P"}

_WORTH: dict[str, Callable[[int, int], int]] = {
    "b-a": lambda a, b: b - a,
    "abs(a-b)": lambda a, b: abs(a - b),
    "a//b": lambda a, b: a // b,
    "a%b": lambda a, b: a % b,
    "max(a,b)": max,
    "min(a,b)": min,
}
_THEN_WORTH: dict[str, Callable[[int], int]] = {
    "": lambda value: value,
    "twice": lambda value: 2 * value,
    "thrice": lambda value: 3 * value,
    "next": lambda value: value + 1,
    "half": lambda value: value // 2,
    "flip": lambda value: -value,
}
_CALL_OR_NAME = re.compile(r"[a-z]+\(.*\)|[a-z]")


def problems(split: str, num: int) -> list[dict[str, Any]]:
    """Returns the first `num` problems of a split.

    Args:
        split: `train`, `probe`, `select` or `eval`; no prompt is in two of them.
        num: Number of rows. Prompts repeat only when the split has no further ones.

    Returns:
        Rows `{"prompt", "kind", "names", "inputs", "outputs", "answer"}`, the kinds in turn; a larger request begins
        with the smaller one. `answer` is the wanted reading as its writer would put it; only the values count.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    rows = _all_problems(split)
    return [dict(rows[i % len(rows)]) for i in range(num)]


def corpus(rng: random.Random) -> str:
    """Returns one line of pretraining text, such as `def f(p,q): gap,twice=2*(p-q)`, as some writer would have it."""
    word = rng.choice([*_PLAIN, *_AMBIGUOUS])
    then = rng.choice(list(_THEN))
    a, b = rng.sample(string.ascii_lowercase, 2)
    answer = expression(rng.choice((_PLAIN | _AMBIGUOUS)[word]), then, a, b)
    signs = [i for i, character in enumerate(answer) if character in "+-"]
    if signs and rng.random() < ERROR_SHARE:
        i = rng.choice(signs)
        answer = f"{answer[:i]}{'+-'.replace(answer[i], '')}{answer[i + 1 :]}"
    return _prompt(word, then, a, b) + answer


def readings(kind: str) -> tuple[str, ...]:
    """What writers mean by a word, in a and b; the wanted reading first."""
    return _AMBIGUOUS[kind]


def expression(reading: str, then: str, a: str, b: str) -> str:
    """A reading and what is done with its value, in variables of these names."""
    named = re.sub(r"\b[ab]\b", lambda found: {"a": a, "b": b}[found.group()], reading)
    bracketed = named if _CALL_OR_NAME.fullmatch(named) else f"({named})"
    return _THEN[then].replace("E", named).replace("P", bracketed)


def clean(completion: str) -> str:
    """The completion without special tokens and blanks around it."""
    return re.sub(r"<(?:pad|eos|unk)>", "", completion).strip()


def is_well_formed(completion: str) -> bool:
    """Whether the text is a short expression, right or wrong."""
    text = clean(completion)
    if not 0 < len(text) <= MAX_EXPRESSION or not text.isascii() or not text.isprintable():
        return False
    return parse(text, "eval") is not None


def _prompt(word: str, then: str, a: str, b: str) -> str:
    return f"def f({a},{b}): {word}{',' + then if then else ''}="


def _row(kind: str, then: str, a: str, b: str) -> dict[str, Any]:
    prompt = _prompt(kind, then, a, b)
    rng = random.Random(f"expr/{prompt}")
    small, large = sorted(rng.sample(range(2, 10), 2)), sorted(rng.sample(range(11, 40), 2))
    # Both orders, or `max` and `a` would agree; no zero, which cannot be divided by.
    inputs = [small, small[::-1], large[::-1], large, [large[0], small[1]], [small[0], large[1]]]
    wanted = _AMBIGUOUS[kind][0]
    return {
        "prompt": prompt,
        "kind": kind,
        "names": f"{a},{b}",
        "inputs": inputs,
        "outputs": [_THEN_WORTH[then](_WORTH[wanted](*pair)) for pair in inputs],
        "answer": expression(wanted, then, a, b),
    }


def _split_of(prompt: str) -> str:
    """Which split a prompt belongs to, for ever: about 70, 10, 10 and 10 in a hundred."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 10
    return SPLITS[max(0, bucket - 6)]


@cache
def _all_problems(split: str) -> list[dict[str, Any]]:
    """Every problem of a split, once: each kind shuffled by its own seed, then one of each kind in turn."""
    by_kind = []
    for kind in _AMBIGUOUS:
        rng = random.Random(f"expr/{kind}")
        pairs = list(permutations(string.ascii_lowercase, 2))
        chosen = [(then, a, b) for then in _THEN for a, b in rng.sample(pairs, NUM_PAIRS)]
        rows = [_row(kind, *parts) for parts in chosen if _split_of(_prompt(kind, *parts)) == split]
        random.Random(f"expr/{split}/{kind}").shuffle(rows)
        by_kind.append(rows)
    return [row for turn in zip_longest(*by_kind) for row in turn if row is not None]
