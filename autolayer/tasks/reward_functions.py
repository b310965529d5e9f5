"""Calls several reward functions on the same completions and adds up what they return, each with its weight.

As in TRL, a function that returns None for a completion does not judge it, and adds nothing to its reward. TRL leaves a
completion that no function judges out of its group. Here it ends the run, because it has no score either.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from autolayer.core.errors import RewardError
from autolayer.tasks.rewards import LARGEST, as_number, begin, describe, judge, retried, sample, show

Judgement = Mapping[str, float | None]
"""The values that the reward functions returned for one completion, by name; None where one does not judge it."""


def reward_names(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """Returns the name of each function; the second of one name gets a number, so that every name is another."""
    names: list[str] = []
    for function in functions:
        while isinstance(function, functools.partial):
            function = function.func
        name = getattr(function, "__name__", type(function).__name__)
        same = sum(known == name or known.startswith(f"{name}_") for known in names)
        names.append(f"{name}_{same + 1}" if name in names else name)
    return names


def call_rewards(
    functions: Sequence[Callable[..., Any]],
    columns: Mapping[str, Sequence[Any]],
    *,
    weights: Sequence[float] | None = None,
    retries: int = 0,
    trainer_state: Any = None,
    log_metric: Callable[..., None] | None = None,
    log_extra: Callable[..., None] | None = None,
) -> tuple[list[float], list[Judgement]]:
    """Calls reward functions as TRL does; coroutine functions run at the same time.

    Args:
        functions: The functions.
        columns: One value per completion of each argument: prompts (texts or message lists), completions in TRL's form
            (`rewards.as_completion`), completion_ids, and the columns of the data.
        weights: Weight of each function; None: all weigh 1.
        retries: Times that a function which fails is called again, alone.
        trainer_state: TRL's `TrainerState`, with `global_step` and `max_steps`.
        log_metric: Called by the functions with a name and a number.
        log_extra: Called by the functions with a name and one value per completion.

    Returns:
        The reward of every completion, which is the sum of what its judges returned, each times its weight; and what
        each function returned for it.

    Raises:
        RewardError: As `rewards.judge`, or no function judges one of the completions.
    """
    logs = {"log_extra": log_extra or _ignore, "log_metric": log_metric or _ignore}
    given = {**columns, "trainer_state": trainer_state, **logs}
    names, values = reward_names(functions), _judge_all(functions, given, retries)
    judgements: list[Judgement] = [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)]
    rewards = []
    for index, judgement in enumerate(judgements):
        weighted = zip(checked_weights(weights, len(functions)), judgement.values(), strict=True)
        parts = [weight * value for weight, value in weighted if value is not None]
        if not parts:
            raise RewardError(
                f"reward function {' and '.join(map(describe, functions))} returned None for {sample(given, index)}, "
                "so that nothing judges it. Return a finite number for every completion, 0.0 where it earns nothing, "
                "or leave such rows out of the data."
            )
        rewards.append(sum(parts))
    return rewards, judgements


def _judge_all(
    functions: Sequence[Callable[..., Any]], given: Mapping[str, Any], retries: int
) -> list[list[float | None]]:
    begun: dict[int, Future[Any]] = {}
    try:
        begun |= {i: future for i, function in enumerate(functions) if (future := begin(function, given)) is not None}
        return [
            retried(lambda i=i, function=function: judge(function, given, begun.pop(i, None)), retries)
            for i, function in enumerate(functions)
        ]
    finally:
        for future in begun.values():  # those behind a function that failed
            future.cancel()


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands for TRL's log_extra and log_metric where nothing keeps what is logged."""


def checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Returns one weight per reward function, 1 each for None."""
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise RewardError(f"there are {len(weights)} reward weights for {count} reward functions: give one for each.")
    numbers = [number for weight in weights if (number := as_number(weight)) is not None]
    if len(numbers) != count:
        raise RewardError(f"the reward weights {show(list(weights))} cannot work: give numbers of at most {LARGEST:g}.")
    return tuple(numbers)
