"""Length limits: drops long prompts, shortens completions, or refuses a task that exceeds the model's positions."""

import logging
from dataclasses import replace

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.rollouts.prompts import check_embedded, encode_prompts
from autolayer.tasks.base import SPLITS, Task

logger = logging.getLogger(__name__)


def apply_length_limits(
    config: Config,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
    num_tokens: int | None = None,
) -> Task:
    """Returns the task with prompts and completions that fit the user's limits and the model's positions.

    `positions` is None if the model has no limit. A prompt with a token from `num_tokens` on, which the model has no
    embedding for, is refused. A task with an environment is returned unchanged, because an episode ends when its
    context is full.
    """
    limit = config.max_prompt_tokens
    if task.environment is not None:
        if limit is not None:
            raise ConfigError(
                f"--max-prompt-tokens {limit} cannot be used with task '{task.name}', because its episodes grow turn "
                "by turn: leave the option out."
            )
        return task
    template_kwargs = dict(task.chat_template_kwargs)
    encoded = {name: encode_prompts(tokenizer, task.splits[name], template_kwargs) for name in SPLITS}
    if limit is not None:
        task = _drop_long_prompts(limit, task, encoded)
    if num_tokens is not None:
        each = (ids for split in encoded.values() for ids in split)
        check_embedded(tokenizer, num_tokens, each, f"a prompt of task '{task.name}'")
    lengths = {name: list(map(len, split)) for name, split in encoded.items()}
    return task if positions is None else _limit_completions(config, task, lengths, positions)


def _drop_long_prompts(limit: int, task: Task, encoded: dict[str, list[list[int]]]) -> Task:
    """Drops prompts above a limit, `encoded` ones too, except in `eval`, whose score is defined on all its rows."""
    splits = dict(task.splits)
    for name in SPLITS[:-1]:
        if (shortest := min(map(len, encoded[name]))) > limit:
            raise ConfigError(
                f"--max-prompt-tokens {limit} leaves no prompt in split '{name}' of task '{task.name}', where the "
                f"shortest has {shortest} tokens: give at least {shortest}."
            )
        pairs = zip(task.splits[name], encoded[name], strict=True)
        splits[name] = [row for row, ids in pairs if len(ids) <= limit]
        encoded[name] = [ids for ids in encoded[name] if len(ids) <= limit]
    if num_dropped := sum(len(task.splits[name]) - len(splits[name]) for name in splits):
        logger.warning("task '%s': dropped %d prompts of more than %d tokens.", task.name, num_dropped, limit)
        task = replace(task, splits=splits)
    return task


def _limit_completions(config: Config, task: Task, lengths: dict[str, list[int]], positions: int) -> Task:
    """Shortens completions if the longest training prompt requires it; long `eval` prompts only cause a warning."""
    longest = max(length for name in SPLITS[:-1] for length in lengths[name])
    longest_any = max(longest, *lengths["eval"])
    if longest_any >= positions:
        raise ConfigError(
            f"{config.model} has {positions} positions, but the longest prompt of task '{task.name}' has {longest_any} "
            "tokens: give shorter prompts, or a model with more positions."
        )
    if config.max_new_tokens is not None and longest + task.max_new_tokens > positions:
        raise ConfigError(
            f"{config.model} has {positions} positions, too few for the longest training prompt of {longest} tokens "
            f"and {task.max_new_tokens} new tokens: give shorter prompts, or --max-new-tokens {positions - longest}."
        )
    if longest + task.max_new_tokens > positions:
        task = replace(task, max_new_tokens=positions - longest)
    wanted = task.eval_decoding.max_new_tokens if task.eval_decoding else task.max_new_tokens
    if tight := sum(length + wanted > positions for length in lengths["eval"]):
        logger.warning(
            "task '%s': %d of %d prompts of 'eval' leave fewer than %d new tokens in the model's %d positions, so the "
            "answers may be truncated.", task.name, tight, len(lengths["eval"]), wanted, positions,
        )  # fmt: skip
    return task
