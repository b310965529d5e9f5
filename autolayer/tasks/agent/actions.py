"""Finds the action in a completion: a chat model may write its thoughts first, or wrap the action in tags."""

import re

from autolayer.tasks.thinking import after_thinking

FILLERS = frozenset(("the", "a", "to"))
"""Words that a chat model adds without changing the meaning."""


def action_of(text: str) -> str:
    r"""Returns the action alone, in lower case and with single blanks.

    Thoughts are removed; a text that is all thoughts has no action. The action is the content of `<action>...</action>`
    (the form of verl-agent's prompts), else the rest of a line `Action: ...` (ReAct, arXiv 2210.03629), else the last
    line.

    Example:
        action_of("<think>it may be cold</think>\nAction: Open fridge.") == "open fridge"
    """
    text = after_thinking(re.sub(r"<\|?(?:pad|eos|unk|im_end|endoftext)\|?>", "", text)) or ""
    if tagged := re.findall(r"<action>(.*?)</action>", text, flags=re.DOTALL | re.IGNORECASE):
        text = tagged[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    named = [line.partition(":")[2] for line in lines if re.match(r"action\s*:", line, flags=re.IGNORECASE)]
    line = (named or lines)[-1].strip(" \t.!*`'\">")
    return " ".join(line.lower().split())


def words_of(text: str) -> list[str]:
    """Returns the words of the action, without fillers: `go to the kitchen` becomes `go kitchen`."""
    return [word for word in action_of(text).split() if word not in FILLERS]
