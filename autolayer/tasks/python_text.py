"""Python that a model writes, read without running it. Standard library only."""

from __future__ import annotations

import ast
import warnings
from typing import Literal


def parse(text: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST | None:
    """Its syntax tree, or None for what is no Python. Says nothing: `1if x` is worth a warning to its writer only."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text, mode=mode)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
