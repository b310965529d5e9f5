"""Samples completions or whole episodes for rows of a task, and scores them by the task's reward."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from autolayer.distributed.fsdp import is_sharded
from autolayer.distributed.process_group import ProcessGroup, attempt
from autolayer.rollouts.engines.base import Completion, Engine, think_prefix, truncate_at_stop
from autolayer.rollouts.multi_turn import play_episodes
from autolayer.rollouts.prompts import encode_prompts
from autolayer.rollouts.rollouts import Rollouts
from autolayer.tasks.base import Row, Task
from autolayer.tasks.rewards import as_number

LONGEST_TEXT = 20_000
"""Characters of a logged text that are kept."""


def sample(engine: Engine, task: Task, rows: Sequence[Row], seeds: Sequence[int], group_size: int) -> Rollouts:
    """Samples completions or episodes in this process; see `sample_on_all_ranks`."""
    if not rows:  # with fewer completions than ranks, some ranks have none
        return Rollouts.joined((), group_size)
    repeated = [row for row in rows for _ in range(group_size)]
    if task.environment is not None:
        return play_episodes(engine, task, repeated, seeds, group_size)
    encoded = encode_prompts(engine.tokenizer, rows, dict(task.chat_template_kwargs))
    prompt_ids = [ids for ids in encoded for _ in range(group_size)]
    written = engine.generate(prompt_ids, seeds)
    kept = written if task.stop is None else [truncate_at_stop(engine.tokenizer, ids, task.stop) for ids in written]
    completion_ids = [list(ids) for ids in kept]
    decoded = engine.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    finished = [
        engine.finished(ids) or (task.stop is not None and task.stop in text)
        for ids, text in zip(kept, decoded, strict=True)
    ]
    texts = [think_prefix(engine.tokenizer, ids) + text for ids, text in zip(prompt_ids, decoded, strict=True)]
    logged: defaultdict[str, list[float]] = defaultdict(list)
    extras: list[dict[str, float | str | None]] = [{} for _ in texts]
    rewards, judgements = task.judge(
        repeated, texts, completion_ids, log_metric=partial(_log, logged), log_extra=partial(_add_column, extras)
    )
    log_probs = [completion.log_probs for completion in kept]
    metrics = {name: fmean(values) for name, values in logged.items()}
    return Rollouts.of_one_turn(
        prompt_ids, completion_ids, texts, rewards, finished, group_size, log_probs, metrics, judgements, extras
    )


def sample_on_all_ranks(
    process_group: ProcessGroup,
    engine: Engine,
    task: Task,
    rows: Sequence[Row],
    seeds: Sequence[int],
    group_size: int,
) -> Rollouts:
    """Samples and scores completions, each rank its share, and returns all on every rank. Call it on every rank.

    There is one row per prompt, P in all, and one seed per completion, P * `group_size` in all. If the model is
    sharded, a forward pass needs all ranks. Then every rank takes part in generating all completions, and only rank 0
    runs rewards and environments.
    """
    if process_group.world_size > 1:
        engine.share_weights(process_group)
    try:
        if is_sharded(engine.model):

            def on_rank_0(sample_requests: Callable[..., list[Completion]]) -> Rollouts:
                with engine.sampling_by(sample_requests):
                    return sample(engine, task, rows, seeds, group_size)

            return process_group.call_from_rank_0(on_rank_0, engine.sample_requests)
        repeated = process_group.share([row for row in rows for _ in range(group_size)])
        own_seeds = process_group.share(seeds)
        parts = process_group.gather(attempt(lambda: sample(engine, task, repeated, own_seeds, 1)))
        return Rollouts.joined(parts, group_size)
    finally:
        engine.sleep()


def _log(logged: defaultdict[str, list[float]], name: str, value: Any) -> None:
    """Adds a value that a reward logs; one that is no finite number is left out, because nothing is decided by it."""
    if (number := as_number(value)) is not None:
        logged[name].append(number)


def _add_column(extras: list[dict[str, float | str | None]], name: str, values: Iterable[Any]) -> None:
    """Adds a column that a reward logs, as numbers or texts; values without a completion are left out."""
    for extra, value in zip(extras, values, strict=False):
        number = as_number(value)
        extra[str(name)] = number if number is not None or value is None else str(value)[:LONGEST_TEXT]
