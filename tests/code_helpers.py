"""Helpers of the tests of the code tasks: a prompt, bodies of a function that squares, and replies."""

from typing import Any

from autolayer.core.config import Config
from autolayer.tasks import load_task

CHAT = [{"role": "user", "content": "Square a number."}]
RIGHT, HALF, WRONG = "return n * n", "return abs(n * 3) if n > 0 else 0", "return n"


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


def load(name: str, *, chat: bool = False) -> Any:
    return load_task(Config(model="m", task=name), chat=chat)
