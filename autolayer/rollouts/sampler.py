"""Sampling: completions or whole episodes for rows of a task, and their rewards."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from autolayer.distributed.fsdp import is_sharded, led
from autolayer.distributed.process_group import Ranks, attempt
from autolayer.rollouts.engines.base import Engine, think_prefix, truncate_at_stop
from autolayer.rollouts.multi_turn import play_episodes
from autolayer.rollouts.types import Rollouts, encode_prompts, request_seed
from autolayer.tasks.base import Row, Task


def sample(engine: Engine, task: Task, rows: Sequence[Row], seeds: Sequence[int], group_size: int) -> Rollouts:
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
    if not rows:  # of so few, this process has none
        return Rollouts.joined((), group_size)
    repeated = [row for row in rows for _ in range(group_size)]
    if task.environment is not None:
        return play_episodes(engine, task, repeated, seeds, group_size)
    encoded = encode_prompts(engine.tokenizer, rows, dict(task.chat_template_kwargs))
    prompt_ids = [ids for ids in encoded for _ in range(group_size)]
    written = engine.generate(prompt_ids, seeds)
    kept = written if task.stop is None else [truncate_at_stop(engine.tokenizer, ids, task.stop) for ids in written]
    finished = [engine.finished(ids) or len(ids) < len(whole) for ids, whole in zip(kept, written, strict=True)]
    completion_ids = [list(ids) for ids in kept]
    said = engine.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    texts = [think_prefix(engine.tokenizer, ids) + text for ids, text in zip(prompt_ids, said, strict=True)]
    metrics: dict[str, float] = {}
    rewards = task.score(repeated, texts, completion_ids, log_metric=metrics.__setitem__)
    log_probs = [completion.log_probs for completion in kept]
    return Rollouts.of_one_turn(prompt_ids, completion_ids, texts, rewards, finished, group_size, log_probs, metrics)


def in_order(rows: Sequence[Row], seed: int, positions: Iterable[int]) -> list[Row]:
    """The rows at some positions of an endless list, in which every epoch has a seeded order of its own."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in positions:
        epoch, index = divmod(position, len(rows))
        if epoch not in orders:
            orders[epoch] = random.Random(request_seed(seed, "order", epoch)).sample(range(len(rows)), len(rows))
        chosen.append(rows[orders[epoch][index]])
    return chosen


def sample_share(
    ranks: Ranks, engine: Engine, task: Task, rows: Sequence[Row], seeds: Sequence[int], group_size: int
) -> list[Rollouts]:
    """`sample` of each process's own rows, in all of them at once; what has been sampled, in parts, in their order."""
    if is_sharded(engine.model):  # its passes take all processes, so the leader makes them for everyone
        asked = ranks.gather((rows, seeds))
        rows = [row for some, _ in asked for row in some]
        seeds = [seed for _, some in asked for seed in some]
        return [led(engine.model, lambda: sample(engine, task, rows, seeds, group_size))]
    if engine.is_shared and ranks.num > 1:  # nobody asks before the leader has sent the weights
        engine.expect_version(ranks.gather(attempt(engine.publish_version))[0])
    try:
        return ranks.gather(attempt(lambda: sample(engine, task, rows, seeds, group_size)))
    finally:
        engine.sleep()
