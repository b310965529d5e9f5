"""Lists the built-in tasks and loads the task of a configuration.

Importing this loads neither torch nor datasets, so that a mistyped name is refused before anything heavy is imported.
"""

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError, unknown
from autolayer.tasks.agent.alfworld import load_alfworld
from autolayer.tasks.agent.guess import load_guess
from autolayer.tasks.agent.house import load_house
from autolayer.tasks.base import ADVISED_ROWS, SPLITS, Row, Task, split_of, split_rows
from autolayer.tasks.code.code_task import load_code, load_humaneval, load_mbpp, load_small
from autolayer.tasks.code.expr import load_expr
from autolayer.tasks.custom import is_reference, load_custom_task, load_reward, parse_reference
from autolayer.tasks.data_files import check_path
from autolayer.tasks.environment import Environment, Step
from autolayer.tasks.hub import local_copies
from autolayer.tasks.math.arith import load_arith
from autolayer.tasks.math.datasets import TRAINING
from autolayer.tasks.math.public import load_gsm8k, load_public
from autolayer.tasks.math.small_numbers import load_format, load_larger, load_sums
from autolayer.tasks.own_data import load_own_data
from autolayer.tasks.words import load_copy, load_kinds, load_opposites, load_sequence

logger = logging.getLogger(__name__)

__all__ = [
    "SPLITS",
    "TASKS",
    "Environment",
    "Row",
    "Step",
    "Task",
    "check_task_name",
    "load_task",
    "split_of",
    "split_rows",
]


class BuiltIn(NamedTuple):
    """A task that is part of the package."""

    description: str
    load: Callable[..., Task]
    """Function that builds the task; its argument `chat` is True if the model has a chat template."""
    runs_programs: bool = False
    """True if the reward runs programs that the model writes; `load` then takes `allow_unsandboxed` as well."""


TASKS: dict[str, BuiltIn] = {
    "math": BuiltIn("grade-school word problems (GSM8K); evaluated on 512 of its test set, as in training", load_gsm8k),
    "math:arith": BuiltIn(
        "arithmetic on a clock face, generated; the smallest form of math, for tiny models", load_arith
    ),
    "math:sums": BuiltIn("small sums, generated; for small pretrained models, as the six below", load_sums),
    "math:larger": BuiltIn("the larger of two numbers, shown by examples", load_larger),
    "math:format": BuiltIn("a small sum in the form of the reply before it, in the chat template", load_format),
    "words:opposites": BuiltIn("the opposite of a word", load_opposites),
    "words:kinds": BuiltIn("whether a thing is of a kind, yes or no, in the chat template", load_kinds),
    "words:sequence": BuiltIn("the next of four numbers or letters", load_sequence),
    "words:copy": BuiltIn("the first or the last of three words, shown by examples", load_copy),
    "agent:guess": BuiltIn("a number from 1 to 9 in three guesses, over several turns", load_guess),
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

OWN_TASK = "Your own: --task path/to/file.py:MyTask, or --data FILE --reward FILE.py:function."


def check_task_name(config: Config, forms: Mapping[str, str] | None = None) -> None:
    """Refuses a task that cannot be loaded, as far as this is known without importing anything heavy.

    `forms` has the variant of each kind of task that a packaged model is large enough for: `{"math": "math:arith"}`.
    """
    if config.reward is not None:
        check_path(str(config.data), config.split)
        for reference in config.rewards:
            parse_reference("--reward", reference)
        return
    if config.data is not None and not Path(config.data).is_dir():
        raise ConfigError(
            f"--data {config.data} is not a folder. Without --reward it must be a folder with copies of the public "
            "data sets that --task reads: give one (FOLDER/openai/gsm8k/...), or your own prompts and a --reward."
        )
    if is_reference(config.task):
        parse_reference("--task", config.task)
        return
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS, OWN_TASK)
    kind = config.task.partition(":")[0]
    form = (forms or {}).get(kind, config.task)
    if form != config.task:
        raise ConfigError(
            f"--task {config.task} is too hard for the packaged model '{config.model}', so RL would have nothing "
            f"to learn from: use --task {form}, which it was made for, or another --model."
        )


def load_task(config: Config, *, chat: bool) -> Task:
    """Loads and checks the task of a configuration, with the configuration's own limits in place of the task's.

    `chat` is True if the model has a chat template. Built-in tasks then use messages.
    """
    check_task_name(config)
    task = _read_task(config, chat)
    _check_model_fits(task, config, chat)
    switches = {} if config.thinking is None else {"enable_thinking": config.thinking}
    return replace(
        task,
        max_new_tokens=config.max_new_tokens or task.max_new_tokens,
        num_eval=config.num_eval or task.num_eval,
        reward_retries=config.reward_retries or task.reward_retries,
        chat_template_kwargs={**task.chat_template_kwargs, **switches},
    )


def _read_task(config: Config, chat: bool) -> Task:
    """Returns the user's task, all rows of which are then checked, or a built-in one, which checks what it reads."""
    if config.reward is not None:
        # The rewards are loaded first, because their errors show at once and a large file takes a while to read.
        rewards = [load_reward(reference) for reference in config.rewards]
        return _with_checked_rows(load_own_data(config, rewards))
    with local_copies(config.data) as read:
        if is_reference(config.task):
            task = _with_checked_rows(load_custom_task(config, chat=chat))
        else:
            built_in = TASKS[config.task]
            options = {"allow_unsandboxed": config.allow_unsandboxed} if built_in.runs_programs else {}
            task = built_in.load(chat=chat, **options)
    if config.data is not None and not read:
        raise ConfigError(
            f"--task {config.task} reads no public data set, so --data {config.data} has no effect: leave it out."
        )
    return task


def _with_checked_rows(task: Task) -> Task:
    """Returns the task after `check_row`, where a reward has one, has accepted every row."""
    checks = [check for reward in task.rewards if (check := getattr(reward, "check_row", None)) is not None]
    for (name, rows), check_row in itertools.product(task.splits.items(), checks):
        for index, row in enumerate(rows):
            try:
                check_row(row)
            except DataError as error:
                raise DataError(f"task '{task.name}', row {index} of '{name}': {error}") from None
    return task


def _check_model_fits(task: Task, config: Config, chat: bool) -> None:
    if task.is_chat and not chat:
        raise DataError(
            f"the prompts of '{task.name}' are messages, but {config.model} has no chat template to turn them into "
            "text: give the prompts as plain text, or use the chat version of the model."
        )
    if config.thinking is not None and not task.is_chat:
        raise ConfigError(
            f"the thinking switch belongs to the chat template, which the plain-text prompts of '{task.name}' do not "
            "go through: leave it out, or give the prompts as messages."
        )
    if chat and not task.is_chat and task.name not in TASKS:  # a built-in task reads plain text on purpose
        logger.warning(
            "the prompts of '%s' are plain text: the chat template of %s is not applied to them.",
            task.name,
            config.model,
        )
    if small := [f"{name} {len(rows)}" for name, rows in task.splits.items() if len(rows) < ADVISED_ROWS]:
        logger.warning(
            "task '%s' has few rows (%s): expect wide intervals; %d in each split are advised.",
            task.name, ", ".join(small), ADVISED_ROWS,
        )  # fmt: skip
