"""Defines `Environment`, an episode of several turns, and functions that call one and check what it returns.

An environment is made new for every episode and knows nothing of tokens. The first observation follows the row's
prompt. Every action is what the model writes next, and the observation that answers it is what the model reads next.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from autolayer.core.errors import EpisodeError
from autolayer.tasks.rewards import as_number, describe, said, show
from autolayer.tasks.time_limit import within
from autolayer.tasks.user_code import keeping_process_state


class Step(NamedTuple):
    """The result of an action."""

    observation: str
    """Text that the model reads next. It is not shown once the episode is done."""
    reward: float
    """Reward of this action alone. An episode's return is the sum over its actions."""
    done: bool


class Environment(Protocol):
    """One episode.

    All methods are called from one thread, which is not the main one. Five optional attributes are read:
        state: A text that names the state in which the next action is taken, if the observation does not. GiGPO
            compares actions taken in equal states (arXiv 2505.10978).
        finish: A method without arguments that returns a last reward when the turns or the context are used up. It is
            added to the last action's reward.
        role: Role of the messages that hold observations for a chat model: "user" by default, "tool" for results of
            tools.
        tools: JSON schemas that the chat template lists.
        close: A method without arguments, called when the episode is over, in every case.
    """

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begins the episode that a row describes, and returns the first observation ('' if the prompt says all)."""
        ...

    def step(self, action: str) -> Step:
        """Takes one action: the model's own words without surrounding blanks.

        An action that makes no sense is not an error. The observation says so.
        """
        ...


MakeEnvironment = Callable[[], Environment]

LIMIT = 300.0
"""Seconds that one call of an environment may take. A large game takes a while to load."""


def make(make_environment: MakeEnvironment) -> Environment:
    """Makes a new environment, or raises an `EpisodeError`, as all functions here do."""
    environment = _call(make_environment, "when it was made")
    if missing := [name for name in ("reset", "step") if not callable(getattr(environment, name, None))]:
        raise EpisodeError(
            f"environment {describe(make_environment)} makes {show(environment)}, which has no "
            f"{' and no '.join(missing)}: give both methods (autolayer/tasks/environment.py says what they return)."
        )
    return environment


def begin(environment: Environment, row: Mapping[str, Any]) -> str:
    """Begins an episode and returns the first observation."""
    observation = _call(environment.reset, "in reset", row)
    if not isinstance(observation, str):
        wanted = "the first observation as a text, '' if the prompt says all"
        raise EpisodeError(_wrong(environment.reset, observation, wanted))
    return observation


def act(environment: Environment, action: str) -> Step:
    """Takes one step and checks it, so that a failure never becomes a reward."""
    found = _call(environment.step, "in step", action)
    if not isinstance(found, tuple) or len(found) != 3:
        raise EpisodeError(_wrong(environment.step, found, "an autolayer.tasks.Step"))
    observation, reward, done = found
    if not isinstance(observation, str):
        raise EpisodeError(_wrong(environment.step, observation, "a text as the observation"))
    return Step(observation, _reward(environment.step, reward), bool(done))


def finish(environment: Environment) -> float:
    """Returns the last reward of an episode that ended at its turn limit or with its context full."""
    method = getattr(environment, "finish", None)
    return 0.0 if method is None else _reward(method, _call(method, "in finish"))


def end(environment: Environment) -> None:
    """Closes an environment, which may hold processes, files or a game engine."""
    method = getattr(environment, "close", None)
    if method is not None:
        _call(method, "in close")


def state_of(environment: Environment, observation: str) -> str:
    """Returns the name of the state in which the next action is taken."""
    state = getattr(environment, "state", None)
    return state if isinstance(state, str) else observation


def _call(method: Callable[..., Any], where: str, *given: Any) -> Any:
    try:
        with keeping_process_state():
            return within(LIMIT, lambda: method(*given))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        hint = f" It was given {show(given[0])}; an action that makes no sense is no error." if given else ""
        raise EpisodeError(
            f"environment {describe(method, error)} raised {said(error, f' {where}')}. Mend it.{hint}"
        ) from error


def _reward(method: Callable[..., Any], reward: Any) -> float:
    number = as_number(reward)
    if number is None:
        raise EpisodeError(_wrong(method, reward, "a finite number as the reward, 0.0 for nothing"))
    return number


def _wrong(method: Callable[..., Any], found: Any, wanted: str) -> str:
    return f"environment {describe(method)} returned {show(found)}, a {type(found).__name__}: return {wanted}."
