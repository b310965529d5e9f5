"""Rows of generated environments: each split has seeds of its own, and no prompt is in two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autolayer.tasks.base import Row


def seeded_rows(
    prompt_of: Callable[[str], str], sizes: Mapping[str, int], instruction: str | None
) -> dict[str, list[Row]]:
    """Rows `{"prompt", "seed"}` of every split; a larger split begins with the smaller one.

    Args:
        prompt_of: The plain prompt of a seed such as `train/17`.
        sizes: Number of rows of each split.
        instruction: Explains the actions to a chat model, in one message with the prompt; None leaves plain text.
    """
    splits: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for split, size in sizes.items():
        rows = splits[split] = []
        index = 0
        while len(rows) < size:
            seed, index = f"{split}/{index}", index + 1
            prompt = prompt_of(seed)
            if prompt in seen:
                continue
            seen.add(prompt)
            rows.append({"prompt": prompt if instruction is None else as_message(instruction, prompt), "seed": seed})
    return splits


def as_message(instruction: str, prompt: str) -> list[dict[str, str]]:
    """One user message: many chat templates refuse two in a row."""
    return [{"role": "user", "content": f"{instruction}\n\n{prompt}"}]
