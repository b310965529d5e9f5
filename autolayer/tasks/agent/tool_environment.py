"""Makes an environment of any class that follows TRL's `environment_factory`: its methods become the model's tools.

The contract (trl/trainer/grpo_trainer.py, TRL 1.16): `reset(**row)` begins an episode and returns None or a text that
follows the prompt. Every other public method is a tool, with type hints and a docstring in Google's style. The optional
`get_reward()` returns the reward at the end of the episode. Methods may be coroutines. The episode ends with the first
answer that calls no tool, or when the object's attribute `done` or `finished` is true.

    class Counter:
        def reset(self, target, **row):
            self.target, self.total = target, 0

        def add(self, number: int) -> str:
            '''Adds to the total.

            Args:
                number: How much to add.
            '''
            self.total += number
            return f"total {self.total}"

        def get_reward(self):
            return float(self.total == self.target)

        @classmethod
        def rows(cls):
            return [{"prompt": f"Reach {n}.", "target": n} for n in range(1000)]

With `rows`, `--task FILE.py:Counter` is enough, and the class attributes `max_turns` and `max_new_tokens` set limits.
`environment_task` makes a task of a class without it. Left out on purpose: images in a tool's result.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autolayer.core.errors import DataError
from autolayer.tasks.agent.tool_calls import BadCall, ToolCall, tool_calls
from autolayer.tasks.base import Row, Task, split_rows
from autolayer.tasks.environment import Step
from autolayer.tasks.reward_functions import call_rewards
from autolayer.tasks.rewards import check_signature, describe, wait_for

MAX_TURNS = 10
MAX_NEW_TOKENS = 512


class ToolEnvironment:
    """One episode with an object of the user.

    The reward comes with the last step. It is the object's `get_reward()`, that of a function in TRL's signature
    (called with `environments=[object]` and the episode's messages as the completion), or the sum of both, as in TRL.
    """

    role = "tool"

    def __init__(self, factory: Callable[[], Any], reward: Callable[..., Any] | None = None) -> None:
        self._object = factory()
        self._reward = reward
        self._methods = tool_methods(self._object)
        self._row: Mapping[str, Any] = {}
        self._messages: list[dict[str, str]] = []
        self._is_paid = False

    @functools.cached_property
    def tools(self) -> list[dict[str, Any]]:
        """The JSON schema of every tool, for the chat template to list."""
        return tool_schemas(self._object)

    @property
    def state(self) -> str:
        """The object's own `state` if it is a text, else all messages so far."""
        own = getattr(self._object, "state", None)
        return own if isinstance(own, str) else "\n".join(message["content"] for message in self._messages)

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begins the episode with the columns of the row, including the prompt, as TRL does."""
        self._row, self._messages, self._is_paid = row, [], False
        observation = wait_for(self._object.reset(**row))
        return "" if observation is None else observation

    def step(self, action: str) -> Step:
        """Makes the calls in an answer. Their results, one line each, are the observation."""
        self._messages.append({"role": "assistant", "content": action})
        calls = tool_calls(action)
        observation = "\n".join(str(self._call(call)) for call in calls)
        if calls:
            self._messages.append({"role": "tool", "content": observation})
        done = not calls or self._is_done()
        return Step(observation, self.finish() if done else 0.0, done)

    def finish(self) -> float:
        """Returns the episode's reward the first time, with the last step or when turns or context are used up."""
        if self._is_paid:
            return 0.0
        self._is_paid = True
        rewards = []
        if callable(getattr(self._object, "get_reward", None)):
            rewards.append(wait_for(self._object.get_reward()))
        if self._reward is not None:
            columns: dict[str, Any] = {name: [value] for name, value in self._row.items() if name != "prompt"}
            columns |= {"prompts": [self._row["prompt"]], "completions": [self._messages], "completion_ids": [[]]}
            reward = functools.partial(self._reward, environments=[self._object])  # bound, so that it is not copied
            rewards += call_rewards([reward], columns)[0]
        # A single reward is returned unchanged, so that `environment.act` can refuse one that is no number.
        return rewards[0] if len(rewards) == 1 else sum(rewards)

    def _call(self, call: ToolCall | BadCall) -> Any:
        if isinstance(call, BadCall):
            return {"error": str(call)}
        if call.name not in self._methods:
            return {"error": f"Tool {call.name} not found."}  # TRL's words
        try:
            return wait_for(self._methods[call.name](**call.arguments))
        except Exception as error:
            return {"error": str(error)}

    def _is_done(self) -> bool:
        flags = [getattr(self._object, name, False) for name in ("done", "finished")]
        return any(bool(flag) for flag in flags if not callable(flag))  # a method of that name is a tool


def tool_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """Returns the tools of an object, as TRL does: public methods, no class methods, not `reset` and `get_reward`."""
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    return {
        name: getattr(environment, name)
        for name in names
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


def tool_schemas(environment: Any) -> list[dict[str, Any]]:
    """Returns the JSON schema of every tool of an object, from type hints and docstrings."""
    from transformers.utils.chat_template_utils import get_json_schema  # loads torch

    schemas = []
    for method in tool_methods(environment).values():
        try:
            schemas.append(get_json_schema(method))
        except Exception as error:  # transformers' own kinds, which have moved between releases
            raise DataError(
                f"the tool {describe(method)} cannot be described to a model: {error}. Give it type hints, and a "
                "docstring with an 'Args:' section that has a line for every argument."
            ) from error
    return schemas


def environment_task(
    name: str,
    factory: Callable[[], Any],
    rows: Iterable[Row],
    *,
    max_turns: int = MAX_TURNS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    reward: Callable[..., Any] | None = None,
    **fields: Any,
) -> Task:
    """Makes a task of a class that follows TRL's `environment_factory`.

    Args:
        name: Name for reports and folders.
        factory: The class, or a function without parameters that makes an object.
        rows: Rows with a `prompt` and the arguments of `reset`, split 70/10/10/10 by the hash of the whole row.
        max_turns: Maximum number of answers in an episode.
        max_new_tokens: Maximum tokens of each answer.
        reward: Function in TRL's signature with `environments`, for classes without `get_reward`.
        fields: Further fields of `Task`: `num_eval`, `chat_template_kwargs`, ...
    """
    rows = list(rows)
    _check_factory(name, factory, reward, rows)
    return Task(
        name=name,
        splits=split_rows(rows, by_row=True),
        environment=functools.partial(ToolEnvironment, factory, reward),
        max_turns=max_turns,
        max_new_tokens=max_new_tokens,
        **fields,
    )


def task_of_class(cls: type) -> Task:
    """Makes the task of a class with `rows()`, for `--task FILE.py:Class`."""
    return environment_task(
        cls.__name__,
        cls,
        cls.rows(),  # pyright: ignore[reportAttributeAccessIssue]
        max_turns=getattr(cls, "max_turns", MAX_TURNS),
        max_new_tokens=getattr(cls, "max_new_tokens", MAX_NEW_TOKENS),
    )


def _check_factory(name: str, factory: Any, reward: Any, rows: list[Row]) -> None:
    """Tries the class once, as TRL does, so that errors show before a model is loaded."""
    if not rows:
        raise DataError(f"task '{name}' has no rows: give a list of dictionaries with a 'prompt'.")
    try:
        environment = factory()
    except Exception as error:
        raise DataError(
            f"task '{name}': {describe(factory)} raised {type(error).__name__}: {error}. It is called without "
            "arguments, once for every episode."
        ) from error
    kind = type(environment).__name__
    if not callable(getattr(environment, "reset", None)):
        raise DataError(f"task '{name}': {kind} has no reset(**row), which begins an episode: add it.")
    if not tool_methods(environment):
        raise DataError(f"task '{name}': {kind} has no public method besides reset, so the model has no tool: add one.")
    if reward is not None:
        check_signature(functools.partial(reward, environments=[]), [name for name in rows[0] if name != "prompt"])
    elif not callable(getattr(environment, "get_reward", None)):
        raise DataError(f"task '{name}': {kind} has no get_reward(), and there is no reward function: give one.")
    tool_schemas(environment)
    try:
        inspect.signature(environment.reset).bind(**rows[0])
    except TypeError as error:
        raise DataError(
            f"task '{name}': {describe(environment.reset)} cannot be called with the columns of a row "
            f"({', '.join(map(str, rows[0]))}): {error}. It gets all of them by name, the prompt too: add **row to its "
            "parameters."
        ) from error
