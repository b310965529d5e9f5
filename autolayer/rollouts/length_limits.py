"""Prompts and completions that the model has positions for: what is left out, cut shorter, or refused."""

from __future__ import annotations

import logging
from dataclasses import replace

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.rollouts.types import encode_prompts
from autolayer.tasks.base import SPLITS, Task

logger = logging.getLogger(__name__)


def apply_length_limits(config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, positions: int | None) -> Task:
    """The task as this model can do it.

    Args:
        config: The user's limits.
        task: Of one turn; where there is an environment an episode ends where its context is full.
        tokenizer: The model's.
        positions: Of the model (`models.max_positions`); None where there is no limit.

    Raises:
        ConfigError: No prompt of a split is short enough, or prompts leave no room for completions.
    """
    lengths = {name: _lengths(task, name, tokenizer) for name in SPLITS} if task.environment is None else {}
    task, lengths = _leave_out(config, task, lengths)
    return task if positions is None or not lengths else _shorten(config, task, lengths, positions)


def _lengths(task: Task, split: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(map(len, encode_prompts(tokenizer, task.splits[split], dict(task.chat_template_kwargs))))


def _leave_out(config: Config, task: Task, lengths: dict[str, list[int]]) -> tuple[Task, dict[str, list[int]]]:
    """Without the prompts that the user finds too long. None of `eval`: a score is one on all of it."""
    if (limit := config.max_prompt_tokens) is None:
        return task, lengths
    if task.environment is not None:
        raise ConfigError(
            f"--max-prompt-tokens {limit} cannot work: what task '{task.name}' reads grows turn by turn; leave it out."
        )
    splits, left = dict(task.splits), dict(lengths)
    for name in SPLITS[:-1]:
        kept = [index for index, length in enumerate(lengths[name]) if length <= limit]
        if not kept:
            raise ConfigError(
                f"--max-prompt-tokens {limit} leaves no prompt in '{name}' of task '{task.name}': the shortest there "
                f"has {min(lengths[name])} tokens, give at least that."
            )
        splits[name] = [task.splits[name][index] for index in kept]
        left[name] = [lengths[name][index] for index in kept]
    if num_left_out := sum(len(task.splits[name]) - len(splits[name]) for name in splits):
        logger.warning("task '%s': %d prompts of more than %d tokens are left out.", task.name, num_left_out, limit)
        task = replace(task, splits=splits)
    return task, left


def _shorten(config: Config, task: Task, lengths: dict[str, list[int]], positions: int) -> Task:
    """Shorter completions where training needs it; of the evaluation only those behind its longest prompts."""
    longest = max(length for name in SPLITS[:-1] for length in lengths[name])
    most = max(longest, *lengths["eval"])
    if most >= positions:
        raise ConfigError(
            f"{config.model} has {positions} positions, and the longest prompt of task '{task.name}' alone has {most} "
            "tokens: give shorter prompts, or a model with more."
        )
    if config.max_new_tokens is not None and longest + task.max_new_tokens > positions:
        raise ConfigError(
            f"{config.model} has {positions} positions, too few for the longest training prompt of {longest} tokens "
            f"and {task.max_new_tokens} new ones: give shorter prompts, or --max-new-tokens {positions - longest}."
        )
    if longest + task.max_new_tokens > positions:
        task = replace(task, max_new_tokens=positions - longest)
    asked = task.eval_decoding.max_new_tokens if task.eval_decoding else task.max_new_tokens
    if tight := sum(length + asked > positions for length in lengths["eval"]):
        logger.warning(
            "task '%s': %d of %d prompts of 'eval' leave fewer than %d new tokens in the model's %d positions, so an "
            "answer may be cut off there.", task.name, tight, len(lengths["eval"]), asked, positions,
        )  # fmt: skip
    return task
