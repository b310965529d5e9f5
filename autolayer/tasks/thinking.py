"""Removes a model's thoughts, which end in `</think>`, from a completion."""

OPEN, CLOSE = "<think>", "</think>"


def after_thinking(text: str) -> str | None:
    """Returns what a text says after its thoughts, or None if it is still thinking at its end.

    A completion whose prompt ends in `<think>` (DeepSeek-R1's templates) gets that tag put back in front
    before it is judged (`think_prefix` in rollouts/engines/base.py), so one without `</think>` is unfinished too.
    """
    said = text.rpartition(CLOSE)[2]
    return None if OPEN in said else said
