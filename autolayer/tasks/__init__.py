"""Tasks: which there are, and `load_task`, which makes one ready from the configuration.

Importing this loads neither torch nor datasets, so that a mistyped name is refused before anything heavy starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autolayer.config import Config
from autolayer.errors import ConfigError, DataError, unknown
from autolayer.tasks.base import SPLITS, Row, Task, split_of, split_rows
from autolayer.tasks.custom import is_reference, load_custom_task, load_reward, parse_reference
from autolayer.tasks.environment import Environment, Step
from autolayer.tasks.hub import local_copies
from autolayer.tasks.jsonl import check_path, load_jsonl
from autolayer.tasks.math.arith_task import load_arith
from autolayer.tasks.math.datasets import TRAINING
from autolayer.tasks.math.gsm8k import load_math
from autolayer.tasks.math.public import load_public
from autolayer.tasks.reasoning_gym import PREFIX, check_reasoning_gym, load_reasoning_gym

logger = logging.getLogger(__name__)

__all__ = [
    "FAMILIES",
    "SPLITS",
    "TASKS",
    "Environment",
    "Row",
    "Step",
    "Task",
    "check_name",
    "load_task",
    "split_of",
    "split_rows",
]


class BuiltIn(NamedTuple):
    """A task that ships."""

    description: str
    """One line for `autolayer tasks`."""
    load: Callable[..., Task]
    """Called with `chat=`, whether the model has a chat template."""


TASKS: dict[str, BuiltIn] = {
    "math": BuiltIn("grade-school word problems (GSM8K, from the Hugging Face Hub or its cache)", load_math),
    "math:arith": BuiltIn(
        "arithmetic on a clock face, generated; the smallest form of math, for tiny models", load_arith
    ),
    "math:gsm8k": BuiltIn("the same as math", partial(load_math, "math:gsm8k")),
    **{
        f"math:{name}": BuiltIn(
            f"{source.title}; evaluated on MATH500, GSM8K, OlympiadBench and AMC", partial(load_public, name)
        )
        for name, source in TRAINING.items()
        if name != "gsm8k"
    },
}

FAMILIES: dict[str, BuiltIn] = {
    PREFIX: BuiltIn("NAME is any data set that reasoning-gym generates, offline", load_reasoning_gym),
}
"""Tasks named PREFIX:NAME. `load` takes the NAME as well, first."""

OWN_TASK = "Your own: --task path/to/file.py:MyTask, or --data FILE.jsonl --reward FILE.py:function."


def check_name(config: Config, forms: Mapping[str, str] | None = None) -> None:
    """Refuses a task that cannot be loaded, as far as can be told without importing anything heavy.

    Args:
        config: The configuration; `data` with a `reward` goes before `task`.
        forms: For a packaged model, the form of each task that it is large enough for: `{"math": "math:arith"}`.

    Raises:
        AutolayerError: An unknown name, a file that is not there, or a task too hard for a packaged model.
    """
    if config.data is not None and config.reward is not None:
        check_path(config.data)
        parse_reference("--reward", config.reward)
        return
    if config.data is not None and not Path(config.data).is_dir():
        raise ConfigError(
            f"--data {config.data} without --reward is a folder with copies of the public data sets that --task reads, "
            "and this is none: give such a folder (FOLDER/openai/gsm8k/...), or a .jsonl file and a --reward."
        )
    if is_reference(config.task):
        parse_reference("--task", config.task)
    elif config.task.startswith(PREFIX):
        check_reasoning_gym(config.task.removeprefix(PREFIX))
    elif config.task not in TASKS:
        raise unknown("task", config.task, [*TASKS, *(f"{prefix}NAME" for prefix in FAMILIES)], OWN_TASK)
    elif forms and (form := forms.get(config.task.partition(":")[0])) not in (None, config.task):
        raise ConfigError(
            f"--task {config.task} is far too hard for the packaged model '{config.model}', so RL would have nothing "
            f"to learn from: use --task {form}, its smallest form, or another --model."
        )


def load_task(config: Config, *, chat: bool) -> Task:
    """Loads the task of a configuration, with the configuration's own limits in place of the task's.

    Args:
        config: The configuration.
        chat: Whether the model has a chat template. Built-in tasks then use messages.

    Raises:
        AutolayerError: The data cannot be read, or do not fit the model.
    """
    check_name(config)
    if config.data is not None and config.reward is not None:
        # The reward first: its errors show at once, a large file takes a while.
        reward = load_reward(config.reward)
        task = load_jsonl(config.data, reward)
    else:
        with local_copies(config.data) as read:
            task = load_custom_task(config, chat=chat) if is_reference(config.task) else _built_in(config.task, chat)
        if config.data is not None and not read:
            raise ConfigError(
                f"--task {config.task} reads no public data set, so --data {config.data} means nothing: leave it out."
            )
    if task.is_chat and not chat:
        raise DataError(
            f"the prompts of '{task.name}' are messages, but {config.model} has no chat template to turn them into "
            "text: give the prompts as plain text, or use the chat version of the model."
        )
    if chat and not task.is_chat:
        logger.warning(
            "the prompts of '%s' are plain text: the chat template of %s is not applied to them.",
            task.name,
            config.model,
        )
    if config.thinking is not None and not task.is_chat:
        raise ConfigError(
            f"the thinking switch belongs to the chat template, which the plain-text prompts of '{task.name}' do not "
            "go through: leave it out, or give the prompts as messages."
        )
    switches = {} if config.thinking is None else {"enable_thinking": config.thinking}
    return replace(
        task,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        num_eval=config.num_eval or task.num_eval,
        chat_template_kwargs={**task.chat_template_kwargs, **switches},
    )


def _built_in(name: str, chat: bool) -> Task:
    for prefix, family in FAMILIES.items():
        if name.startswith(prefix):
            return family.load(name.removeprefix(prefix), chat=chat)
    return TASKS[name].load(chat=chat)
