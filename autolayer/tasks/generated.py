"""Shared parts of the generated one-line tasks: splits, order, clean completions and the reward for an exact answer."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

from autolayer.tasks.base import SPLITS, Row
from autolayer.tasks.rewards import text_of
from autolayer.tasks.thinking import after_thinking


def first_rows(rows_of: Callable[[str], list[Row]], split: str, num: int) -> list[Row]:
    """Returns copies of the first `num` rows of a split (`rows_of`: all of them), which repeat if there are fewer."""
    rows = rows_of(split)
    return [dict(rows[i % len(rows)]) for i in range(num)]


def split_of_line(prompt: str) -> str:
    """Returns the split of a prompt, about 70/10/10/10. It depends on nothing but the prompt."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 10
    return SPLITS[max(0, bucket - 6)]


def in_turn(rows_by_kind: Iterable[list[Row]]) -> list[Row]:
    """Returns one row of each kind, then the next one of each, until all are used."""
    return [row for turn in zip_longest(*rows_by_kind) for row in turn if row is not None]


def without_special_tokens(completion: str) -> str:
    """Returns the completion without thoughts, special tokens and surrounding blanks."""
    return re.sub(r"<(?:pad|eos|unk)>", "", after_thinking(completion) or "").strip()


def exact_reward(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], **columns: Any
) -> list[float]:
    """Scores completions in TRL's signature: 1.0 for exactly the answer, else 0.0."""
    texts = [without_special_tokens(text_of(completion)) for completion in completions]
    return [float(text == wanted) for text, wanted in zip(texts, answer, strict=True)]
