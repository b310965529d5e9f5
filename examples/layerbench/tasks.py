"""LayerBench's tasks, for `--task examples/layerbench/tasks.py:NAME`: problems of one language in the four splits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from languages import LANGUAGES

from autolayer.tasks.base import Row, Task

SIZES = {"eval": 1024, "select": 512, "probe": 768, "train": 4096}
"""Rows of each split; `train` may get fewer where a language has no more prompts."""


def reward(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """1.0 for exactly the answer, else 0.0."""
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]


def make(name: str) -> Task:
    """The task of a language. No prompt is in two splits."""
    language, rng = LANGUAGES[name], random.Random(f"layerbench/{name}")
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        for _ in range(20 * size):
            prompt, answer = language.problem(rng)
            if len(splits[split]) < size and prompt not in seen:
                seen.add(prompt)
                splits[split].append({"prompt": prompt, "answer": answer})
    return Task(name=f"layerbench:{name}", splits=splits, reward=reward, max_new_tokens=language.max_new_tokens)


for _name in LANGUAGES:
    globals()[_name] = partial(make, _name)
