"""A task of several turns, and a random model to play it."""

from typing import Any

from tiny_models import build_model

from autolayer.tasks.base import Row, Task
from autolayer.tasks.environment import Step


class Echo:
    """Says how long the action was, pays for every 'a', and is done after an action with a digit in it."""

    def reset(self, row: Row) -> str:
        self.turn = 0
        return row["first"]

    def step(self, action: str) -> Step:
        self.turn += 1
        return Step(f"{len(action)}!", float(action.count("a")), any(map(str.isdigit, action)))


def make_task(environment: Any = Echo, *, chat: bool = False, **options: Any) -> Task:
    def prompt(index: int) -> Any:
        return [{"role": "user", "content": f"p{index}"}] if chat else f"p{index}:"

    rows: list[Row] = [{"prompt": prompt(index), "first": f"o{index % 3}"} for index in range(40)]
    splits = {name: rows[start::4] for start, name in enumerate(("train", "probe", "select", "eval"))}
    return Task(name="echo", splits=splits, environment=environment, **{"max_new_tokens": 6, "max_turns": 3, **options})


def often_ending() -> Any:
    """A random model with so many end tokens that actions differ in length."""
    model = build_model("qwen3")
    model.generation_config.eos_token_id = [1, *range(30, 60)]
    return model
