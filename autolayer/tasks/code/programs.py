"""Finding the program in what a model wrote: the last fenced block, or the continuation of a prompt that is code."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from autolayer.tasks.python_text import parse
from autolayer.tasks.thinking import after_thinking

FENCE = "```"
OPENING = "```python\n"
"""What a prompt for a base model ends in, so that the program is what comes before the fence is closed."""

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_NEXT_PART = re.compile(r"\n(?=class |def |@|#|if |print\(|assert |import |from |```)")
_LANGUAGES = ("python", "python3", "py", "")


def program_of(prompt: Any, completion: str, prefix: str = "") -> str | None:
    """The program that a completion stands for, or None where it has none.

    Args:
        prompt: A text or a list of messages. A text that ends in the prefix or in `OPENING` is continued.
        completion: What the model wrote.
        prefix: Code that the problem begins with, such as a function's header and docstring.
    """
    if isinstance(prompt, str) and prefix and prompt.endswith(prefix):
        # A base model goes on after the function: with tests, examples, the next problem.
        return prefix + _NEXT_PART.split(completion, maxsplit=1)[0] + "\n" if completion.strip() else None
    if isinstance(prompt, str) and prompt.endswith(OPENING):
        return prefix + completion.partition(FENCE)[0] if completion.strip() else None
    program = _last_block(completion)
    # The header on its own gives the program its imports and helpers, and is then defined anew.
    return f"{prefix}\n\n{program}" if program and prefix and is_program(prefix) else program


def is_answer(completion: str, *, chat: bool) -> bool:
    """Whether a completion looks like a program, right or wrong.

    Args:
        completion: What the model wrote.
        chat: Whether it should be in a fenced block, rather than the continuation of a prompt.
    """
    if chat:
        program = _last_block(completion)
        return program is not None and is_program(program)
    program = completion.partition(FENCE)[0]
    if not program.strip():
        return False
    body = "def f():\n" + _NEXT_PART.split(program, maxsplit=1)[0]
    return is_program(program) or is_program(body)


def is_program(text: str) -> bool:
    """Whether Python can parse it."""
    return parse(text) is not None


def _last_block(text: str) -> str | None:
    said = after_thinking(text)
    if said is None:
        return None
    blocks = [code for language, code in _BLOCK.findall(said + "\n") if language.lower() in _LANGUAGES]
    return textwrap.dedent(blocks[-1]) if blocks and blocks[-1].strip() else None
