"""Defines `Environment`, an episode of several turns, and functions that call one and check what it returns.

An environment is made new for every episode and knows nothing of tokens. The first observation follows the row's
prompt. Every action is what the model writes next, and the observation that answers it is what the model reads next.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from autolayer.core.errors import EpisodeError
from autolayer.tasks.rewards import as_number, describe, show
from autolayer.tasks.time_limit import within


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
    """Makes a new environment.

    Raises:
        EpisodeError: It cannot be made, or lacks a method.
    """
    try:
        environment = within(LIMIT, make_environment)
    except (Exception, SystemExit) as error:
        raise EpisodeError(
            f"environment {describe(make_environment, error)} raised {type(error).__name__} when it was made: {error}. "
            "Mend it."
        ) from error
    if missing := [name for name in ("reset", "step") if not callable(getattr(environment, name, None))]:
        raise EpisodeError(
            f"environment {describe(make_environment)} makes {show(environment)}, which has no "
            f"{' and no '.join(missing)}: give both methods (autolayer/tasks/environment.py says what they return)."
        )
    return environment


def begin(environment: Environment, row: Mapping[str, Any]) -> str:
    """Begins an episode and returns the first observation.

    Raises:
        EpisodeError: The environment raised, or returned no text.
    """
    try:
        observation = within(LIMIT, lambda: environment.reset(row))
    except (Exception, SystemExit) as error:
        raise EpisodeError(_raised("reset", environment.reset, error, row["prompt"])) from error
    if not isinstance(observation, str):
        raise EpisodeError(
            f"environment {describe(environment.reset)} returned {show(observation)} from reset, a "
            f"{type(observation).__name__}: return the first observation as a text, '' if the prompt says all."
        )
    return observation


def act(environment: Environment, action: str) -> Step:
    """Takes one step and checks it, so that a failure never becomes a reward.

    Raises:
        EpisodeError: The environment raised, or returned something that is not a step.
    """
    try:
        found = within(LIMIT, lambda: environment.step(action))
    except (Exception, SystemExit) as error:
        raise EpisodeError(_raised("step", environment.step, error, action)) from error
    if not isinstance(found, tuple) or len(found) != 3:
        raise EpisodeError(_wrong("step", environment.step, show(found), "an autolayer.tasks.Step"))
    step = Step(*found)
    if not isinstance(step.observation, str):
        raise EpisodeError(_wrong("step", environment.step, f"the observation {show(step.observation)}", "a text"))
    return step._replace(reward=_number("step", environment.step, step.reward), done=bool(step.done))


def finish(environment: Environment) -> float:
    """Returns the last reward of an episode that ended at its turn limit or with its context full.

    Raises:
        EpisodeError: `finish` raised or returned no finite number.
    """
    method = getattr(environment, "finish", None)
    if method is None:
        return 0.0
    try:
        reward = within(LIMIT, method)
    except (Exception, SystemExit) as error:
        raise EpisodeError(
            f"environment {describe(method, error)} raised {type(error).__name__} in finish: {error}. Mend it."
        ) from error
    return _number("finish", method, reward)


def end(environment: Environment) -> None:
    """Closes an environment, which may hold processes, files or a game engine.

    Raises:
        EpisodeError: `close` raised.
    """
    method = getattr(environment, "close", None)
    if method is None:
        return
    try:
        within(LIMIT, method)
    except (Exception, SystemExit) as error:
        raise EpisodeError(
            f"environment {describe(method, error)} raised {type(error).__name__} in close: {error}. Mend it."
        ) from error


def state_of(environment: Environment, observation: str) -> str:
    """Returns the name of the state in which the next action is taken."""
    state = getattr(environment, "state", None)
    return state if isinstance(state, str) else observation


def _number(what: str, method: Callable[..., Any], reward: Any) -> float:
    number = as_number(reward)
    if number is None:
        raise EpisodeError(_wrong(what, method, f"the reward {show(reward)}", "a finite number, 0.0 for nothing"))
    return number


def _raised(what: str, method: Callable[..., Any], error: BaseException, given: Any) -> str:
    return (
        f"environment {describe(method, error)} raised {type(error).__name__} in {what}: {error}. It was given "
        f"{show(given)}. Mend it; an action that makes no sense should get an observation that says so."
    )


def _wrong(what: str, method: Callable[..., Any], found: str, wanted: str) -> str:
    return f"environment {describe(method)} returned {found} from {what}: return {wanted}."
