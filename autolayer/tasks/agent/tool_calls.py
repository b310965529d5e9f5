"""Parses the tool calls in a completion, in either of two forms.

A chat model writes `<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>`, as the templates of Qwen and
Hermes ask it to, once or several times. A base model that reads plain text writes a call of Python, `add(a=1)`, which
is parsed and never runs. Left out on purpose: the formats of other families (Llama's `<|python_tag|>`, Mistral's
`[TOOL_CALLS]`).
"""

import ast
import json
import re
from dataclasses import dataclass, field
from typing import Any

from autolayer.tasks.python_text import parse_python
from autolayer.tasks.thinking import after_thinking

LONGEST_CALL = 20_000
"""Characters above which a Python call is not parsed, since deep nesting could exhaust the parser."""


@dataclass(frozen=True)
class ToolCall:
    """One call, not yet checked against any tool."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments by name."""
    positional: tuple[Any, ...] = ()


class BadCall(ValueError):
    """A call that cannot be parsed. The message is for the model."""


def tool_calls(text: str) -> list[ToolCall | BadCall]:
    """Returns every call in a text, in order, without thoughts. A text without calls gives an empty list.

    Example:
        tool_calls('add(a=1, b=[2])') == [ToolCall("add", {"a": 1, "b": [2]})]
    """
    text = after_thinking(text) or ""
    if "<tool_call>" in text:
        # A last call that was cut off has no end tag, and becomes a BadCall.
        return [_from_json(body) for body in re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, flags=re.DOTALL)]
    call = _from_python(text.strip())
    return [] if call is None else [call]


def _from_json(body: str) -> ToolCall | BadCall:
    try:
        found = json.loads(body)
        arguments = found.get("arguments", found.get("parameters", {}))
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        name = found["name"]
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        return BadCall(f"Invalid tool call ({type(error).__name__}: {error}).")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return BadCall("Invalid tool call: 'name' must be a text and 'arguments' an object.")
    return ToolCall(name, arguments)


def _from_python(text: str) -> ToolCall | BadCall | None:
    """Returns a single call of a plain name, or None for every other text, such as an answer in words."""
    if len(text) > LONGEST_CALL or not re.match(r"[A-Za-z_]\w*\s*\(", text) or not text.endswith(")"):
        return None
    found = parse_python(text, "eval")
    call = found.body if isinstance(found, ast.Expression) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    try:
        positional = tuple(ast.literal_eval(value) for value in call.args)
        arguments = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords if item.arg is not None}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return BadCall(f"Invalid tool call: the arguments of {call.func.id} must be literal values.")
    if len(arguments) != len(call.keywords):
        return BadCall(f"Invalid tool call: name every argument of {call.func.id}.")
    return ToolCall(call.func.id, arguments, positional)
