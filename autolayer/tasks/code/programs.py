"""Finds the program in a completion: the last fenced block, or the continuation of a prompt that is code."""

import ast
import re
import textwrap
import warnings
from typing import Any, Literal

from autolayer.tasks.thinking import after_thinking

FENCE = "```"
OPENING = "```python\n"
"""End of a prompt for a base model, so that the completion is the program up to the closing fence."""

# Possessive, because a long first line without a closing fence would be tried in every way.
_BLOCK = re.compile(r"^[ \t]*+```[ \t]*+(\w*+)[^\n]*+\n(.*?)^[ \t]*+```", re.DOTALL | re.MULTILINE)
_NEXT_PART = re.compile(r"\n(?=class |def |@|#|if |print\(|assert |import |from |```)")
_LANGUAGES = ("python", "python3", "py", "")


def program_of(prompt: Any, completion: str, prefix: str = "") -> str | None:
    """Returns the program in a completion, or None. A completion continues a text that ends in prefix or `OPENING`.

    The prefix is code at the beginning of the problem, such as a function's header and docstring.
    """
    if isinstance(prompt, str) and prefix and prompt.endswith(prefix):
        # A base model continues after the function, with tests, examples or the next problem.
        return _continued(prefix, completion) + "\n" if completion.strip() else None
    if isinstance(prompt, str) and prompt.endswith(OPENING):
        return prefix + completion.partition(FENCE)[0] if completion.strip() else None
    program = _last_block(completion)
    # The header gives the program its imports and helpers; the program then defines the function again.
    return f"{prefix}\n\n{program}" if program and prefix and is_program(prefix) else program


def is_answer(completion: str, *, chat: bool) -> bool:
    """Returns True if a completion looks like a program: for `chat` in a fenced block, else continuing the prompt."""
    if chat:
        program = _last_block(completion)
        return program is not None and is_program(program)
    program = completion.partition(FENCE)[0]
    if not program.strip():
        return False
    return is_program(program) or is_program(_continued("def f():\n", program))


def is_program(text: str, mode: Literal["exec", "eval"] = "exec") -> bool:
    """Returns True if Python can parse the text, with 'eval' as an expression. Warnings (`1if x`) are ignored."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text, mode=mode)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _continued(prefix: str, text: str) -> str:
    """Returns a prefix with the part of a text that continues it, and with the blank that decoding may have dropped.

    Tokenizers of the SentencePiece kind drop a first blank, so that the first line would stand left of the others.
    """
    own = _NEXT_PART.split(text, maxsplit=1)[0]
    blank = " " if own.startswith(" ") and not is_program(prefix + own) else ""
    return prefix + blank + own


def _last_block(text: str) -> str | None:
    said = after_thinking(text)
    if said is None:
        return None
    blocks = [code for language, code in _BLOCK.findall(said + "\n") if language.lower() in _LANGUAGES]
    return textwrap.dedent(blocks[-1]) if blocks and blocks[-1].strip() else None
