"""LayerBench's tasks, for `--task examples/layerbench/tasks.py:NAME`: one language or world in the four splits."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from languages import LANGUAGES
from worlds import MAX_TURNS, WORLDS, Walker

from autolayer.tasks.base import Row, Task

SIZES = {"eval": 1024, "select": 512, "probe": 768, "train": 4096}
"""Rows of each split; `train` may get fewer where a language has no more prompts."""


def reward(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """1.0 for exactly the answer, else 0.0."""
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]


def make(name: str) -> Task:
    """The task of a language or a world. No prompt of a language, and no row of a world, is in two splits."""
    rng = random.Random(f"layerbench/{name}")
    if name in WORLDS:
        draw = WORLDS[name].draw

        def episode() -> Row:
            journey = draw(rng)
            return {"prompt": journey.prompt, **asdict(journey)}

        return Task(
            name=f"layerbench:{name}", splits=_splits(episode), environment=Walker, max_turns=MAX_TURNS,
            max_new_tokens=2, max_context=64,
        )  # fmt: skip
    language = LANGUAGES[name]

    def problem() -> Row:
        prompt, answer = language.problem(rng)
        return {"prompt": prompt, "answer": answer}

    return Task(
        name=f"layerbench:{name}", splits=_splits(problem), reward=reward, max_new_tokens=language.max_new_tokens
    )


def _splits(draw: Callable[[], Row]) -> dict[str, list[Row]]:
    seen: set[Any] = set()
    splits: dict[str, list[Row]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        for _ in range(20 * size):
            row = draw()
            key = (row["prompt"], row.get("start"))
            if len(splits[split]) < size and key not in seen:
                seen.add(key)
                splits[split].append(row)
    return splits


for _name in (*LANGUAGES, *WORLDS):
    globals()[_name] = partial(make, _name)
