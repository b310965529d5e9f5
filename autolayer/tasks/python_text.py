"""Parses Python that a model wrote, without running it."""

import ast
import warnings
from typing import Literal


def parse_python(text: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST | None:
    """Returns the syntax tree, or None if it is not Python. Warnings such as the one for `1if x` are ignored."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text, mode=mode)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
