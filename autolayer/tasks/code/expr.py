"""Generates `code:expr`: one expression for a function of a word or two, the smallest form of the code task.

A prompt is `def f(p,q): gap,twice=`, the completion a Python expression such as `2*abs(p-q)`, and the sandbox runs it
on hidden arguments. The pretraining lines of `expr_line` imitate the web, where writers disagree about the meaning of a
word and make errors. `apart` and `over` have one meaning. The words of the task have two or three readings, and a
writer takes any of them; the reward always requires the first. So a base model knows the operations, and RL has to
teach it which one is meant.

Left out on purpose: the words with one reading as problems (a base model has nothing to learn there), and statements.
"""

import random
import re
import string
from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Any

from autolayer.tasks.generated import first_rows, in_turn, split_of_line, without_special_tokens
from autolayer.tasks.python_text import parse_python

ERROR_SHARE = 0.05  # of the pretraining lines: one sign is another one
MAX_EXPRESSION = 24  # characters; the longest wanted one has 11
NUM_PAIRS = 120  # of variable names, for each pair of words

# The readings of each word, as expressions in a and b. The reward requires the first one.
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

# The second word applies an operation to the first one's value: E without, P with brackets around it.
_THEN: dict[str, str] = {"": "E", "twice": "2*P", "thrice": "3*P", "next": "E+1", "half": "P//2", "flip": "-P"}

_READING_VALUES: dict[str, Callable[[int, int], int]] = {
    "b-a": lambda a, b: b - a,
    "abs(a-b)": lambda a, b: abs(a - b),
    "a//b": lambda a, b: a // b,
    "a%b": lambda a, b: a % b,
    "max(a,b)": max,
    "min(a,b)": min,
}
_THEN_VALUES: dict[str, Callable[[int], int]] = {
    "": lambda value: value,
    "twice": lambda value: 2 * value,
    "thrice": lambda value: 3 * value,
    "next": lambda value: value + 1,
    "half": lambda value: value // 2,
    "flip": lambda value: -value,
}
_CALL_OR_NAME = re.compile(r"[a-z]+\(.*\)|[a-z]")


def expr_problems(split: str, num: int) -> list[dict[str, Any]]:
    """Returns the first `num` problems of a split.

    Args:
        split: `train`, `probe`, `select` or `eval`; no prompt is in two of them.
        num: Number of rows. Prompts repeat only when the split has no further ones.

    Returns:
        Rows `{"prompt", "kind", "names", "inputs", "outputs", "answer"}`, one of each kind in turn. A larger request
        begins with the smaller one. `answer` is one way to write the required reading; only its values count.
    """
    return first_rows(_all_problems, split, num)


def expr_line(rng: random.Random) -> str:
    """Returns one line of pretraining text, such as `def f(p,q): gap,twice=2*(p-q)`, by a random writer."""
    word = rng.choice([*_PLAIN, *_AMBIGUOUS])
    then = rng.choice(list(_THEN))
    a, b = rng.sample(string.ascii_lowercase, 2)
    answer = expression(rng.choice((_PLAIN | _AMBIGUOUS)[word]), then, a, b)
    signs = [i for i, character in enumerate(answer) if character in "+-"]
    if signs and rng.random() < ERROR_SHARE:
        i = rng.choice(signs)
        answer = f"{answer[:i]}{'+-'.replace(answer[i], '')}{answer[i + 1 :]}"
    return _prompt(word, then, a, b) + answer


def expression(reading: str, then: str, a: str, b: str) -> str:
    """Returns a reading, and the operation on its value, in variables of these names."""
    named = re.sub(r"\b[ab]\b", lambda found: {"a": a, "b": b}[found.group()], reading)
    bracketed = named if _CALL_OR_NAME.fullmatch(named) else f"({named})"
    return _THEN[then].replace("E", named).replace("P", bracketed)


def is_short_expression(completion: str) -> bool:
    """Returns True if the text is a short expression, right or wrong."""
    text = without_special_tokens(completion)
    if not 0 < len(text) <= MAX_EXPRESSION or not text.isascii() or not text.isprintable():
        return False
    return parse_python(text, "eval") is not None


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
        "outputs": [_THEN_VALUES[then](_READING_VALUES[wanted](*pair)) for pair in inputs],
        "answer": expression(wanted, then, a, b),
    }


@cache
def _all_problems(split: str) -> list[dict[str, Any]]:
    """Returns every problem of a split: each kind shuffled by its own seed, then one of each kind in turn."""
    by_kind = []
    for kind in _AMBIGUOUS:
        rng = random.Random(f"expr/{kind}")
        pairs = list(permutations(string.ascii_lowercase, 2))
        chosen = [(then, a, b) for then in _THEN for a, b in rng.sample(pairs, NUM_PAIRS)]
        rows = [_row(kind, *parts) for parts in chosen if split_of_line(_prompt(kind, *parts)) == split]
        random.Random(f"expr/{split}/{kind}").shuffle(rows)
        by_kind.append(rows)
    return in_turn(by_kind)
