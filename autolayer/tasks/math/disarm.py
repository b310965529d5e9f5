"""Replaces `eval` in scorers that would run what a model wrote.

Some of reasoning-gym's scorers pass an answer to `eval`, others to sympy's `parse_expr`, which calls `eval` with all
builtins. RL would find this out. So in the scoring processes `eval` accepts only literals and arithmetic on them, and
`parse_expr` only arithmetic over single letters and the functions named here.
"""

import ast
import re
import sys
from collections.abc import Callable
from typing import Any

TRIGONOMETRY = frozenset(
    before + name + after for name in ("sin", "cos", "tan", "cot", "sec", "csc") for before in ("", "a", "arc")
    for after in ("", "h")
)  # fmt: skip
FUNCTIONS = TRIGONOMETRY | {
    "exp", "log", "ln", "sqrt", "cbrt", "Abs", "abs", "sign", "floor", "ceiling", "factorial", "gamma", "erf", "erfi",
    "Ei", "Si", "Ci", "li", "pi", "oo",
}  # fmt: skip
_LETTER_OR_FUNCTION = re.compile(r"[A-Za-z]\d?")
_TOKENS = re.compile(r"\s*(?:(?P<name>[A-Za-z]\w*)|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|[-+*/^(),!|])")


def check_expression(text: str) -> str:
    """Returns the text if evaluating it does only arithmetic: no attribute, string, index or other name.

    Raises:
        ValueError: The text contains something else.
    """
    position, text = 0, text.strip()
    while position < len(text):
        token = _TOKENS.match(text, position)
        name = token and token["name"]
        if token is None or (name and name not in FUNCTIONS and not _LETTER_OR_FUNCTION.fullmatch(name)):
            raise ValueError(f"not arithmetic: {text[position : position + 20]!r}")
        position = token.end()
    return text


def disarm(package: str) -> None:
    """Replaces `eval` and `parse_expr` in all imported modules of a package, and sympy's own, in this process."""
    import sympy
    from sympy.parsing import sympy_parser

    original = sympy_parser.parse_expr
    safe = _checked(original)
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    for module in (*modules, sympy, sympy_parser):
        if getattr(module, "parse_expr", None) is original:
            vars(module)["parse_expr"] = safe
    for module in modules:
        vars(module)["eval"] = _eval


def _checked(parse_expr: Callable[..., Any]) -> Callable[..., Any]:
    def parse(text: str, *args: Any, **options: Any) -> Any:
        return parse_expr(check_expression(text), *args, **options)

    return parse


_HARMLESS = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.Load,
)  # fmt: skip


def _eval(text: str, *_: Any) -> Any:
    """Evaluates literals and operators. Without a name nothing can be called.

    Raises:
        ValueError: The text contains something else.
    """
    tree = ast.parse(text.strip(), mode="eval")
    if other := next((node for node in ast.walk(tree) if not isinstance(node, _HARMLESS)), None):
        raise ValueError(f"not a literal: {type(other).__name__}")
    return eval(compile(tree, "<answer>", "eval"), {"__builtins__": {}})
