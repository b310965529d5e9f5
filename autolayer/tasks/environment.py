"""What an environment is: several turns of an observation and an action each, and a reward for every action.

An environment is made new for every episode and knows nothing of tokens. The episode's first observation follows the
row's prompt; every action is what the model then writes, and its observation what the model reads next.
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
    """One episode."""

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
    reward: Any = step.reward
    number = reward.item() if hasattr(reward, "item") else reward  # scalars of numpy and torch
    if not isinstance(number, numbers.Real) or not math.isfinite(float(number)):
        raise EpisodeError(_wrong(environment, f"the reward {show(step.reward)}", "a finite number, 0.0 for nothing"))
    return step._replace(reward=float(number), done=bool(step.done))


def _raised(what: str, method: Callable[..., Any], error: Exception, given: Any) -> str:
    return (
        f"environment {describe(method, error)} raised {type(error).__name__} in {what}: {error}. It was given "
        f"{show(given)}. Mend it; an action that makes no sense should get an observation that says so."
    )


def _wrong(environment: Environment, found: str, wanted: str) -> str:
    return f"environment {describe(environment.step)} returned {found} from step: return {wanted}."
