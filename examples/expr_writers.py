"""Writes the text from which base models learn the expressions of `code:expr`, by writers who disagree."""

import random
import string

from autolayer.tasks.code.expr import READINGS, THEN, expression, line_start

ERROR_SHARE = 0.05  # of the lines: one sign is another one

ONE_READING = {
    "plus": ("a+b",),
    "minus": ("a-b",),
    "apart": ("abs(a-b)",),
    "over": ("a//b",),
    "mod": ("a%b",),
    "max": ("max(a,b)",),
    "min": ("min(a,b)",),
}
"""Words that all writers agree about. The task has none of them: a base model has nothing to learn there."""


def expr_line(rng: random.Random) -> str:
    """One line such as `def f(p,q): gap,twice=2*(p-q)`, by a random writer, who takes any reading of the word."""
    readings = ONE_READING | READINGS
    word = rng.choice(list(readings))
    then = rng.choice(list(THEN))
    a, b = rng.sample(string.ascii_lowercase, 2)
    answer = expression(rng.choice(readings[word]), then, a, b)
    signs = [i for i, character in enumerate(answer) if character in "+-"]
    if signs and rng.random() < ERROR_SHARE:
        i = rng.choice(signs)
        answer = f"{answer[:i]}{'+-'.replace(answer[i], '')}{answer[i + 1 :]}"
    return line_start(word, then, a, b) + answer
