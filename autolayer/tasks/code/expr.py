"""Generates `code:expr`: one expression for a function of a word or two, the smallest form of the code task.

A prompt is `def f(p,q): gap,twice=`, the completion a Python expression such as `2*abs(p-q)`, and the sandbox runs it
on hidden arguments. The packaged models have read lines (examples/expr_writers.py) that imitate the web, where writers
disagree about the meaning of a word and make errors. The words of the task have two or three readings, and a writer
takes any of them; the reward always requires the first. So a base model knows the operations, and RL has to teach it
which one is meant.
"""

import random
import re
import string
from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations
from typing import Any

from autolayer.tasks.base import Row, Task, as_prompt
from autolayer.tasks.code.programs import is_program
from autolayer.tasks.code.sandbox.jobs import Calls, Limits
from autolayer.tasks.code.sandbox.open_sandbox import open_sandbox
from autolayer.tasks.generated import first_rows, in_turn, split_of_line, without_special_tokens
from autolayer.tasks.rewards import text_of

SIZES = {"train": 2048, "probe": 256, "select": 256, "eval": 512}
INSTRUCTION = "Complete the line with a Python expression; reply with the expression only."
EXPRESSION_LIMITS = Limits(seconds=1, wall_seconds=4, memory=256 << 20, processes=1, output=1 << 16)
MAX_EXPRESSION = 24  # characters; the longest wanted one has 11
NUM_PAIRS = 120  # of variable names, for each pair of words

# The readings of each word, as expressions in a and b. The reward requires the first one.
READINGS: dict[str, tuple[str, ...]] = {
    "less": ("b-a", "a-b"),
    "gap": ("abs(a-b)", "a-b", "b-a"),
    "share": ("a//b", "b//a", "a%b"),
    "rest": ("a%b", "b%a"),
    "top": ("max(a,b)", "a"),
    "low": ("min(a,b)", "b"),
}
# The second word applies an operation to the first one's value: E without, P with brackets around it.
THEN: dict[str, str] = {"": "E", "twice": "2*P", "thrice": "3*P", "next": "E+1", "half": "P//2", "flip": "-P"}

_CALL_OR_NAME = re.compile(r"[a-z]+\(.*\)|[a-z]")


def load_expr(*, chat: bool, allow_unsandboxed: bool = False) -> Task:
    """Loads the task. The packaged base models read plain text; a chat model gets each line as a message."""

    def rows_of(split: str, num: int) -> list[Row]:
        rows = expr_problems(split, num)
        for row in rows:
            del row["answer"]
            row["prompt"] = as_prompt(f"{INSTRUCTION}\n{row['prompt']}" if chat else row["prompt"], chat)
        return rows

    return Task(
        name="code:expr",
        splits={split: rows_of(split, num) for split, num in SIZES.items()},
        reward=make_expr_reward(allow_unsandboxed=allow_unsandboxed),
        max_new_tokens=16,
        is_well_formed=is_short_expression,
        num_eval=512,
    )


def expr_problems(split: str, num: int) -> list[Row]:
    """Returns the first `num` problems of a split, which repeat only when it has no further ones.

    They are rows `{"prompt", "kind", "names", "inputs", "outputs", "answer"}`, one of each kind in turn, where `answer`
    is one way to write the required reading; only its values count. No prompt is in two splits.
    """
    return first_rows(_all_problems, split, num)


def make_expr_reward(*, allow_unsandboxed: bool = False) -> Callable[..., list[float]]:
    """Makes the reward: 1.0 for an expression that has the required value for all arguments, else 0.0."""
    open_sandbox(allow_unsandboxed=allow_unsandboxed)

    def expr_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        names: Sequence[str],
        inputs: Sequence[Sequence[Sequence[int]]],
        outputs: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float]:
        # A group often agrees on one expression: each is run once for its prompt.
        jobs: dict[tuple[str, str], Calls] = {}
        keys = []
        for completion, variables, pairs in zip(completions, names, inputs, strict=True):
            text = text_of(completion)
            program = f"def f({variables}): return (\n{without_special_tokens(text)}\n)"
            keys.append((program, repr(pairs)))
            if is_short_expression(text):
                jobs.setdefault(keys[-1], Calls(program=program, calls=[("f", pair) for pair in pairs]))
        done = open_sandbox(allow_unsandboxed=allow_unsandboxed).run(list(jobs.values()), EXPRESSION_LIMITS)
        values = {key: outcome.values for key, outcome in zip(jobs, done, strict=True)}
        return [float(_are(values.get(key, ()), wanted)) for key, wanted in zip(keys, outputs, strict=True)]

    return expr_reward


def _are(values: Sequence[Any], wanted: Sequence[int]) -> bool:
    """Returns True if these are the wanted integers. 7.0 and True are not integers."""
    return list(values) == list(wanted) and all(type(value) is int for value in values)


def is_short_expression(completion: str) -> bool:
    """Returns True if the text is a short expression, right or wrong."""
    text = without_special_tokens(completion)
    if not 0 < len(text) <= MAX_EXPRESSION or not text.isascii() or not text.isprintable():
        return False
    return is_program(text, "eval")


def line_start(word: str, then: str, a: str, b: str) -> str:
    """Returns a prompt such as `def f(p,q): gap,twice=`."""
    return f"def f({a},{b}): {word}{',' + then if then else ''}="


def expression(reading: str, then: str, a: str, b: str) -> str:
    """Returns a reading, and the operation on its value, in variables of these names."""
    named = re.sub(r"\b[ab]\b", lambda found: {"a": a, "b": b}[found.group()], reading)
    bracketed = named if _CALL_OR_NAME.fullmatch(named) else f"({named})"
    return THEN[then].replace("E", named).replace("P", bracketed)


def _row(kind: str, then: str, a: str, b: str) -> Row:
    prompt = line_start(kind, then, a, b)
    rng = random.Random(f"expr/{prompt}")
    small, large = sorted(rng.sample(range(2, 10), 2)), sorted(rng.sample(range(11, 40), 2))
    # Both orders, or `max` and `a` would agree; no zero, which cannot be divided by.
    inputs = [small, small[::-1], large[::-1], large, [large[0], small[1]], [small[0], large[1]]]
    wanted = _function(READINGS[kind][0], then)
    return {
        "prompt": prompt,
        "kind": kind,
        "names": f"{a},{b}",
        "inputs": inputs,
        "outputs": [wanted(*pair) for pair in inputs],
        "answer": expression(READINGS[kind][0], then, a, b),
    }


@cache
def _function(reading: str, then: str) -> Callable[[int, int], int]:
    return eval(f"lambda a, b: {expression(reading, then, 'a', 'b')}")  # of the tables above, never of a model


@cache
def _all_problems(split: str) -> list[Row]:
    by_kind = []
    for kind in READINGS:
        rng = random.Random(f"expr/{kind}")
        pairs = list(permutations(string.ascii_lowercase, 2))
        chosen = [(then, a, b) for then in THEN for a, b in rng.sample(pairs, NUM_PAIRS)]
        rows = [_row(kind, *parts) for parts in chosen if split_of_line(line_start(kind, *parts)) == split]
        random.Random(f"expr/{split}/{kind}").shuffle(rows)
        by_kind.append(rows)
    return in_turn(by_kind)
