"""Parses the tool calls in a completion: `<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>`.

The templates of Qwen and Hermes ask for this form, once or several times. Left out on purpose: the formats of other
families (Llama's `<|python_tag|>`, Mistral's `[TOOL_CALLS]`).
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from autolayer.tasks.thinking import after_thinking


@dataclass(frozen=True)
class ToolCall:
    """One call, not yet checked against any tool."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class BadCall(ValueError):
    """A call that cannot be parsed. The message is for the model."""


def tool_calls(text: str) -> list[ToolCall | BadCall]:
    """Returns every call in a text after its thoughts. A last call that was cut off is a `BadCall`."""
    bodies = re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", after_thinking(text) or "", flags=re.DOTALL)
    return [_parse(body) for body in bodies]


def _parse(body: str) -> ToolCall | BadCall:
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
