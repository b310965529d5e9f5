"""Removes a model's thoughts, which end in `</think>`, from a completion."""

OPEN, CLOSE = "<think>", "</think>"


def after_thinking(text: str) -> str | None:
    """Returns the text after the thoughts, or None if they are not closed.

    Where the prompt ends in `<think>` (DeepSeek-R1's templates), the completion gets the tag put back first
    (`think_prefix` in rollouts/engines/base.py), so a missing `</think>` is always detected.
    """
    said = text.rpartition(CLOSE)[2]
    return None if OPEN in said else said
