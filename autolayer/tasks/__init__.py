"""Lists the built-in tasks and loads the task of a configuration.

Importing this loads neither torch nor datasets, so that a mistyped name is refused before anything heavy is imported.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError, unknown
from autolayer.tasks.agent.alfworld import load_alfworld
from autolayer.tasks.agent.house import load_house
from autolayer.tasks.base import ADVISED_ROWS, SPLITS, Row, Task, split_of, split_rows
from autolayer.tasks.code.code_task import load_code, load_humaneval, load_mbpp, load_small
from autolayer.tasks.code.expr_task import load_expr
from autolayer.tasks.custom import is_reference, load_custom_task, load_reward, parse_reference
from autolayer.tasks.environment import Environment, Step
from autolayer.tasks.hub import local_copies
from autolayer.tasks.jsonl import check_path, load_jsonl
from autolayer.tasks.math.arith import load_arith
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
    """A task that is part of the package."""

    description: str
    """One line for `autolayer tasks`."""
    load: Callable[..., Task]
    """Function that builds the task; its argument `chat` is True if the model has a chat template."""
    runs_programs: bool = False
    """True if the reward runs programs that the model writes; `load` then takes `allow_unsandboxed` as well."""


TASKS: dict[str, BuiltIn] = {
    "math": BuiltIn("grade-school word problems (GSM8K); evaluated on 512 of its test set, as in training", load_math),
    "math:arith": BuiltIn(
        "arithmetic on a clock face, generated; the smallest form of math, for tiny models", load_arith
    ),
    **{
        f"math:{name}": BuiltIn(
            f"{source.title}; evaluated on MATH500, GSM8K, OlympiadBench and AMC", partial(load_public, name)
        )
        for name, source in TRAINING.items()
    },
    "code": BuiltIn("programs with tests (DeepCoder; HumanEval and MBPP for the evaluation)", load_code, True),
    "code:mbpp": BuiltIn("short functions with tests (MBPP)", load_mbpp, True),
    "code:humaneval": BuiltIn(
        "functions from their header and docstring (HumanEval), split by hash", load_humaneval, True
    ),
    "code:small": BuiltIn("short functions with tests, written for autolayer; nothing is downloaded", load_small, True),
    "code:expr": BuiltIn(
        "one-line expressions, generated; the smallest form of code, for tiny models", load_expr, True
    ),
    "agent:house": BuiltIn(
        "find an object in a household and bring it, generated; the smallest form of agent, for tiny models", load_house
    ),
    "agent:alfworld": BuiltIn("household tasks of ALFWorld (an extra; its data in $ALFWORLD_DATA)", load_alfworld),
}

FAMILIES: dict[str, BuiltIn] = {
    PREFIX: BuiltIn("NAME is any data set that reasoning-gym generates, offline", load_reasoning_gym),
}
"""Tasks named PREFIX:NAME. `load` takes the NAME as well, first."""

OWN_TASK = "Your own: --task path/to/file.py:MyTask, or --data FILE.jsonl --reward FILE.py:function."


def check_name(config: Config, forms: Mapping[str, str] | None = None) -> None:
    """Refuses a task that cannot be loaded, as far as this is known without importing anything heavy.

    Args:
        config: The configuration. `data` with a `reward` takes precedence over `task`.
        forms: For a packaged model, the variant of each kind of task that it is large enough for:
            `{"math": "math:arith"}`.

    Raises:
        AutolayerError: The name is unknown, a file does not exist, or the task is too hard for a packaged model.
    """
    if config.data is not None and config.reward is not None:
        check_path(config.data)
        parse_reference("--reward", config.reward)
        return
    if config.data is not None and not Path(config.data).is_dir():
        raise ConfigError(
            f"--data {config.data} is not a folder. Without --reward it must be a folder with copies of the public "
            "data sets that --task reads: give one (FOLDER/openai/gsm8k/...), or a .jsonl file and a --reward."
        )
    if is_reference(config.task):
        parse_reference("--task", config.task)
    elif config.task.startswith(PREFIX):
        check_reasoning_gym(config.task.removeprefix(PREFIX))
    elif config.task not in TASKS:
        raise unknown("task", config.task, [*TASKS, *(f"{prefix}NAME" for prefix in FAMILIES)], OWN_TASK)
    elif forms and (form := forms.get(config.task.partition(":")[0], config.task)) != config.task:
        raise ConfigError(
            f"--task {config.task} is far too hard for the packaged model '{config.model}', so RL would have nothing "
            f"to learn from: use --task {form}, its smallest form, or another --model."
        )


def load_task(config: Config, *, chat: bool) -> Task:
    """Loads the task of a configuration, with the configuration's own limits in place of the task's.

    Args:
        config: The configuration.
        chat: Whether the model has a chat template. Built-in tasks then use messages.

    Returns:
        The task, whose prompts are checked.

    Raises:
        AutolayerError: The data cannot be read, or do not fit the model.
    """
    check_name(config)
    if config.data is not None and config.reward is not None:
        # The reward is loaded first, because its errors show at once and a large file takes a while to read.
        reward = load_reward(config.reward)
        task = load_jsonl(config.data, reward)
    else:
        with local_copies(config.data) as read:
            task = load_custom_task(config, chat=chat) if is_reference(config.task) else _built_in(config, chat)
        if config.data is not None and not read:
            raise ConfigError(
                f"--task {config.task} reads no public data set, so --data {config.data} has no effect: leave it out."
            )
    if config.reward is not None or is_reference(config.task):  # built-in tasks check theirs where they are read
        check_rows(task)
    if small := [f"{name} {len(rows)}" for name, rows in task.splits.items() if len(rows) < ADVISED_ROWS]:
        logger.warning(
            "task '%s' has few rows (%s): expect wide intervals; %d in each split are advised.",
            task.name, ", ".join(small), ADVISED_ROWS,
        )  # fmt: skip
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


def check_rows(task: Task) -> None:
    """Calls the `check_row` of a reward that has one on every row, so that unusable rows are found before training.

    Raises:
        DataError: The reward cannot score a row, which the message names.
    """
    check = getattr(task.reward, "check_row", None)
    if check is None:
        return
    for name, rows in task.splits.items():
        for index, row in enumerate(rows):
            try:
                check(row)
            except DataError as error:
                raise DataError(f"task '{task.name}', row {index} of '{name}': {error}") from None


def _built_in(config: Config, chat: bool) -> Task:
    for prefix, family in FAMILIES.items():
        if config.task.startswith(prefix):
            return family.load(config.task.removeprefix(prefix), chat=chat)
    built_in = TASKS[config.task]
    options = {"allow_unsandboxed": config.allow_unsandboxed} if built_in.runs_programs else {}
    return built_in.load(chat=chat, **options)
