"""Makes the rows of generated environments. Each split has its own seeds, and no prompt is in two of them."""

from collections.abc import Callable, Mapping
from typing import Any

from autolayer.tasks.base import Row


def seeded_rows(
    prompt_of: Callable[[str], str], sizes: Mapping[str, int], instruction: str | None
) -> dict[str, list[Row]]:
    """Returns rows `{"prompt", "seed"}` of every split. A larger split begins with the smaller one.

    Args:
        prompt_of: Returns the plain prompt of a seed such as `train/17`.
        sizes: Number of rows of each split.
        instruction: Text that explains the actions to a chat model, in one message with the prompt. None: plain text.
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
            text = prompt if instruction is None else f"{instruction}\n\n{prompt}"
            rows.append({"prompt": as_prompt(text, chat=instruction is not None), "seed": seed})
    return splits


def as_prompt(text: str, chat: bool) -> Any:
    """Returns the text, or one user message, since many chat templates refuse two in a row."""
    return [{"role": "user", "content": text}] if chat else text
