"""Tasks: which there are, and `load_task`, which makes one ready from the configuration.

Importing this loads neither torch nor datasets, so that a mistyped name is refused before anything heavy starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from autolayer.config import Config
from autolayer.errors import ConfigError, DataError, unknown
from autolayer.tasks.base import SPLITS, Row, Task, split_of, split_rows
from autolayer.tasks.code.code_task import load_code, load_humaneval, load_mbpp, load_small
from autolayer.tasks.code.expr_task import load_expr
from autolayer.tasks.custom import is_reference, load_custom_task, load_reward, parse_reference
from autolayer.tasks.environment import Environment, Step
from autolayer.tasks.jsonl import check_path, load_jsonl
from autolayer.tasks.math.arith_task import load_arith
from autolayer.tasks.math.gsm8k import load_math

logger = logging.getLogger(__name__)

__all__ = ["SPLITS", "TASKS", "Environment", "Row", "Step", "Task", "check_name", "load_task", "split_of", "split_rows"]


class BuiltIn(NamedTuple):
    """A task that ships."""

    description: str
    """One line for `autolayer tasks`."""
    load: Callable[..., Task]
    """Called with `chat=`, whether the model has a chat template."""
    runs_programs: bool = False
    """Whether the reward runs what the model writes: `load` is then told `allow_unsandboxed=` as well."""


TASKS: dict[str, BuiltIn] = {
    "math": BuiltIn("grade-school word problems (GSM8K, from the Hugging Face Hub or its cache)", load_math),
    "math:arith": BuiltIn(
        "arithmetic on a clock face, generated; the smallest form of math, for tiny models", load_arith
    ),
    "code": BuiltIn("programs with tests (DeepCoder; HumanEval and MBPP for the evaluation)", load_code, True),
    "code:mbpp": BuiltIn("short functions with tests (MBPP)", load_mbpp, True),
    "code:humaneval": BuiltIn(
        "functions from their header and docstring (HumanEval), split by hash", load_humaneval, True
    ),
    "code:small": BuiltIn("short functions with tests, written for autolayer; nothing is downloaded", load_small, True),
    "code:expr": BuiltIn(
        "one-line expressions, generated; the smallest form of code, for tiny models", load_expr, True
    ),
}

OWN_TASK = "Your own: --task path/to/file.py:MyTask, or --data FILE.jsonl --reward FILE.py:function."


def check_name(config: Config, forms: Mapping[str, str] | None = None) -> None:
    """Refuses a task that cannot be loaded, as far as can be told without importing anything heavy.

    Args:
        config: The configuration; `data` goes before `task`.
        forms: For a packaged model, the form of each task that it is large enough for: `{"math": "math:arith"}`.

    Raises:
        AutolayerError: An unknown name, a file that is not there, or a task too hard for a packaged model.
    """
    if config.data is not None:
        check_path(config.data)
        parse_reference("--reward", config.reward or "")
    elif is_reference(config.task):
        parse_reference("--task", config.task)
    elif config.task not in TASKS:
        raise unknown("task", config.task, TASKS, OWN_TASK)
    elif forms and config.task in forms:
        raise ConfigError(
            f"--task {config.task} is far too hard for the packaged model '{config.model}', so RL would have nothing "
            f"to learn from: use --task {forms[config.task]}, its smallest form, or another --model."
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
    if config.data is not None:
        # The reward first: its errors show at once, a large file takes a while.
        reward = load_reward(config.reward or "")
        task = load_jsonl(config.data, reward)
    elif is_reference(config.task):
        task = load_custom_task(config, chat=chat)
    else:
        built_in = TASKS[config.task]
        options = {"allow_unsandboxed": config.allow_unsandboxed} if built_in.runs_programs else {}
        task = built_in.load(chat=chat, **options)
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
