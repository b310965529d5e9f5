"""Calls several reward functions on the same completions and adds up what they return, each with its weight.

As in TRL, a function that returns None for a completion does not judge it, and adds nothing to its reward. TRL leaves a
completion that no function judges out of its group. Here it ends the run, because it has no score either.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from autolayer.core.errors import RewardError
from autolayer.tasks.rewards import begin, judge, judged_by_one, retried

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


def judge_all(functions: Sequence[Callable[..., Any]], given: Mapping[str, Any], retries: int) -> list[Judgement]:
    """Returns the judgement of every completion; coroutine functions run at the same time, as in TRL.

    A function that fails is called again, alone, up to `retries` times. Errors are those of `call_reward`.
    """
    begun: dict[int, Future[Any]] = {}
    try:
        begun |= {i: future for i, function in enumerate(functions) if (future := begin(function, given)) is not None}
        values = [
            retried(lambda i=i, function=function: judge(function, given, begun.pop(i, None)), retries)
            for i, function in enumerate(functions)
        ]
    finally:
        for future in begun.values():  # those behind a function that failed
            future.cancel()
    names = reward_names(functions)
    return [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)]


def weighted_sums(
    functions: Sequence[Callable[..., Any]],
    weights: Sequence[float],
    given: Mapping[str, Any],
    judgements: Sequence[Judgement],
) -> list[float]:
    """Returns the reward of every completion: the sum of what its judges returned, each times its weight.

    Raises:
        RewardError: No function judges one of the completions.
    """
    rewards = []
    for index, judgement in enumerate(judgements):
        parts = [w * value for w, value in zip(weights, judgement.values(), strict=True) if value is not None]
        rewards.append(judged_by_one(functions, given, index, sum(parts) if parts else None))
    return rewards


def checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Returns one weight per reward function, 1 each for None."""
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise RewardError(f"there are {len(weights)} reward weights for {count} reward functions: give one for each.")
    return tuple(map(float, weights))
