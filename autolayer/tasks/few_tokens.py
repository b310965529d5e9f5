"""Shared part of the tasks for small pretrained models, whose prompts and completions have a few tokens.

A prompt shows one or two worked examples and one open problem. Problems, not prompts, are split: all prompts of a
problem are in one split, and worked examples come from `train`.
"""

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

from autolayer.tasks.base import SPLITS, Row, Task
from autolayer.tasks.generated import exact_reward, split_of_line

SIZES = {"train": 2048, "probe": 512, "select": 512, "eval": 1024}


class Problem(NamedTuple):
    """One problem; those with equal keys share a split, such as 3 + 4 and 4 + 3."""

    key: str
    question: str
    answer: str


def few_token_task(
    name: str,
    problems: Sequence[Problem],
    write: Callable[[Problem, Sequence[Problem], random.Random], Any],
    *,
    examples: int = 1,
    **settings: Any,
) -> Task:
    """Makes a task from problems.

    Args:
        name: Name of the task.
        problems: All problems.
        write: Returns the prompt of a problem, given the worked examples and a random state for its shape.
        examples: Number of worked examples.
        **settings: Further fields of the task.
    """
    by_split = {split: [p for p in problems if split_of_line(f"{name}/{p.key}") == split] for split in SPLITS}
    splits: dict[str, list[Row]] = {}
    for split, size in SIZES.items():
        rng, own, rows = random.Random(f"{name}/{split}"), by_split[split], dict[str, Row]()
        rng.shuffle(own)
        for index in count():
            if len(rows) == size:
                break
            problem = own[index % len(own)]
            shown = rng.sample([p for p in by_split["train"] if p.key != problem.key], examples)
            prompt = write(problem, shown, rng)
            rows.setdefault(str(prompt), {"prompt": prompt, "answer": problem.answer})
        splits[split] = list(rows.values())
    return Task(name=name, splits=splits, reward=exact_reward, num_eval=512, **settings)
