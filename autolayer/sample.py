"""Sampling: completions or whole episodes for rows of a task, and their rewards."""

from __future__ import annotations

from collections.abc import Sequence

from autolayer.engine import TransformersEngine, cut_at, opening
from autolayer.episodes import play
from autolayer.rollouts import Rollouts, encode_prompts
from autolayer.tasks.base import Row, Task


def sample(
    engine: TransformersEngine, task: Task, rows: Sequence[Row], seeds: Sequence[int], group_size: int
) -> Rollouts:
    """Samples and rewards with the weights now in the model.

    Args:
        engine: Generates.
        task: Rewards completions, or makes the environments.
        rows: One for each prompt.
        seeds: One for each completion: `group_size` times as many.
        group_size: Completions of a prompt.

    Raises:
        RewardError: The reward failed.
        EpisodeError: An environment failed.
    """
    repeated = [row for row in rows for _ in range(group_size)]
    if task.environment is not None:
        return play(engine, task, repeated, seeds, group_size)
    encoded = encode_prompts(engine.tokenizer, rows, dict(task.chat_template_kwargs))
    prompt_ids = [ids for ids in encoded for _ in range(group_size)]
    completion_ids = engine.generate(prompt_ids, seeds)
    lengths = [len(ids) for ids in completion_ids]
    if task.stop is not None:
        completion_ids = [cut_at(engine.tokenizer, ids, task.stop) for ids in completion_ids]
    finished = [engine.finished(ids) or len(ids) < length for ids, length in zip(completion_ids, lengths, strict=True)]
    said = engine.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    texts = [opening(engine.tokenizer, ids) + text for ids, text in zip(prompt_ids, said, strict=True)]
    metrics: dict[str, float] = {}
    rewards = task.score(repeated, texts, completion_ids, log_metric=metrics.__setitem__)
    return Rollouts.of_one_turn(prompt_ids, completion_ids, texts, rewards, finished, group_size, metrics)
