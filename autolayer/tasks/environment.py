"""What an environment is: several turns of an observation and an action each, and a reward for every action.

An environment is made new for every episode and knows nothing of tokens. The episode's first observation follows the
row's prompt; every action is what the model then writes, and its observation what the model reads next. An episode
ends when a step says so, or when its turns or the context are used up.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from autolayer.errors import EpisodeError
from autolayer.tasks.rewards import describe, show


class Step(NamedTuple):
    """What an action led to."""

    observation: str
    """What the model reads next; nothing is shown once the episode is done."""
    reward: float
    """For this action alone. An episode's return is the sum over its actions."""
    done: bool
    state: str | None = None
    """Names the state that was reached, where the observation does not: GiGPO compares actions taken in equal states
    (arXiv 2505.10978). None takes the observation."""


class Environment(Protocol):
    """One episode.

    An environment that rewards only once an episode is over may also have `finish() -> float`: what is due when the
    turns or the context are used up, so that no step could be the last. It adds to the last action's reward. For a chat
    model, observations become messages of the attribute `role` ("user" without it, "tool" for the results of tools),
    and the chat template lists the JSON schemas in the attribute `tools`.
    """

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begins the episode that a row describes, and returns the first observation ('' if the prompt says all)."""
        ...

    def step(self, action: str) -> Step:
        """Takes one action, the model's own words without surrounding blanks. An action that makes no sense is no
        error: the observation says so."""
        ...


MakeEnvironment = Callable[[], Environment]


def begin(environment: Environment, row: Mapping[str, Any]) -> str:
    """The first observation.

    Raises:
        EpisodeError: The environment raised, or returned no text.
    """
    try:
        observation = environment.reset(row)
    except Exception as error:
        raise EpisodeError(_raised("reset", environment.reset, error, row["prompt"])) from error
    if not isinstance(observation, str):
        raise EpisodeError(
            f"environment {describe(environment.reset)} returned {show(observation)} from reset, a "
            f"{type(observation).__name__}: return the first observation as a text, '' if the prompt says all."
        )
    return observation


def act(environment: Environment, action: str) -> Step:
    """One step, checked: a failure must never become a reward.

    Raises:
        EpisodeError: The environment raised, or returned something that is no step.
    """
    try:
        found = environment.step(action)
    except Exception as error:
        raise EpisodeError(_raised("step", environment.step, error, action)) from error
    if not isinstance(found, tuple) or len(found) not in (3, 4):
        raise EpisodeError(_wrong(environment, show(found), "an autolayer.tasks.Step"))
    step = Step(*found)
    if not isinstance(step.observation, str) or not isinstance(step.state, str | None):
        raise EpisodeError(_wrong(environment, f"the observation {show(step.observation)}", "a text"))
    if (reward := _as_number(step.reward)) is None:
        raise EpisodeError(_wrong(environment, f"the reward {show(step.reward)}", "a finite number, 0.0 for nothing"))
    return step._replace(reward=reward, done=bool(step.done))


def finish(environment: Environment) -> float:
    """What is due when an episode ends though no step was its last; 0.0 for an environment without `finish`.

    Raises:
        EpisodeError: The environment raised, or returned no finite number.
    """
    method = getattr(environment, "finish", None)
    if method is None:
        return 0.0
    try:
        found = method()
    except Exception as error:
        raise EpisodeError(
            f"environment {describe(method, error)} raised {type(error).__name__} in finish: {error}. Mend it."
        ) from error
    if (reward := _as_number(found)) is None:
        raise EpisodeError(
            f"environment {describe(method)} returned {show(found)} from finish: return a finite number, 0.0 for "
            "nothing."
        )
    return reward


def _as_number(reward: Any) -> float | None:
    """A finite float, or None for what is no reward."""
    try:
        number = reward.item() if hasattr(reward, "item") else reward  # scalars of numpy and torch
    except (RuntimeError, TypeError, ValueError):  # more than one element
        return None
    try:
        return float(number) if isinstance(number, numbers.Real) and math.isfinite(float(number)) else None
    except OverflowError:
        return None


def _raised(what: str, method: Callable[..., Any], error: Exception, given: Any) -> str:
    return (
        f"environment {describe(method, error)} raised {type(error).__name__} in {what}: {error}. It was given "
        f"{show(given)}. Mend it; an action that makes no sense should get an observation that says so."
    )


def _wrong(environment: Environment, found: str, wanted: str) -> str:
    return f"environment {describe(environment.step)} returned {found} from step: return {wanted}."
