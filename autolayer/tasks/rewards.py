"""Calls a reward function the way TRL does, and refuses what is not a reward.

A reward that fails must never become a number: a NaN in a group shifts every advantage in it. A None says that the
function does not judge a completion, as in TRL.
"""

import asyncio
import copy
import functools
import inspect
import logging
import math
import numbers
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from autolayer.core.errors import OverdueError, RewardError
from autolayer.tasks.deadline import Overdue, interrupted_when_overdue, is_over
from autolayer.tasks.user_code import keeping_process_state

logger = logging.getLogger(__name__)
T = TypeVar("T")

LARGEST = 1e15
"""Largest absolute reward. Trainers keep rewards in float32, where the squares of larger ones become infinite."""

LONGEST_PAUSE = 60.0
"""Seconds before a failed reward is called again, at most; the first pause is one second, each further one twice the
one before."""

PASSED_BY_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Arguments that a reward gets besides the columns of the data."""


def as_completion(prompt: Any, text: str) -> Any:
    """Returns a completion in TRL's form: a text for a text prompt, one assistant message for messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def text_of(completion: Any) -> str:
    """Returns the text of a completion in either form, for rewards that work with both."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def begin(function: Callable[..., Any], given: Mapping[str, Any]) -> Future[Any] | None:
    """Starts a coroutine function, so that it runs beside others, and returns None for any other function."""
    call = function if inspect.iscoroutinefunction(function) else getattr(function, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(call):
        return None

    async def run() -> Any:
        return await _call(function, given)

    return asyncio.run_coroutine_threadsafe(run(), _event_loop())


def judge(
    function: Callable[..., Any], given: Mapping[str, Any], begun: Future[Any] | None = None
) -> list[float | None]:
    """Calls a reward function with these arguments, or awaits one that has `begun`, and checks what it returns.

    Returns one finite number per completion, or None where the function does not judge it. The message of the
    `RewardError` shows the first sample that failed; it is an `OverdueError` if the reward was still running after the
    deadline of the run.
    """
    completions = given["completions"]
    check_signature(function, [name for name in given if name not in PASSED_BY_TRL])
    try:
        with keeping_process_state(), interrupted_when_overdue(len(completions)):
            result = wait_for(_call(function, given)) if begun is None else begun.result()
            # Still inside the `try`, because a generator runs the user's code only here.
            is_list = isinstance(result, Iterable) and not isinstance(result, (str, bytes, dict))
            values = list(result) if is_list else None
    except RewardError:
        raise
    except Overdue:
        raise OverdueError(
            f"reward function {describe(function)} was still running after the deadline of --hours: give what it waits "
            "for a time limit. The same command resumes."
        ) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and CancelledError, too
        raise RewardError(
            f"reward function {describe(function, error)} raised {said(error)}. The batch began with "
            f"{sample(given, 0)}. Mend the function; for a completion that it cannot read it should return 0.0. If it "
            "fails only now and then, --reward-retries calls it again."
        ) from error
    if values is None:
        raise RewardError(
            f"reward function {describe(function)} returned {show(result)}, a {type(result).__name__}: return a list "
            f"with one number per completion ({len(completions)} here)."
        )
    if len(values) != len(completions):
        raise RewardError(
            f"reward function {describe(function)} returned {len(values)} numbers for {len(completions)} completions "
            f"(prompts repeat, one for each completion). The batch began with {sample(given, 0)}. Return one number "
            "per completion, in their order."
        )
    rewards = [None if value is None else as_number(value) for value in values]
    for index, (value, reward) in enumerate(zip(values, rewards, strict=True)):
        if reward is None and value is not None:
            raise RewardError(
                f"reward function {describe(function)} returned {show(value)} for {sample(given, index)}. Return a "
                f"finite number of at most {LARGEST:g} for every completion: 0.0 where it earns nothing."
            )
    return rewards


def sample(given: Mapping[str, Any], index: int) -> str:
    """Returns the prompt and the completion of an index in words."""
    return f"sample {index}: prompt {show(given['prompts'][index])}, completion {show(given['completions'][index])}"


def _call(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    # A reward may write to what it is given: the task's rows and the rollouts must not change with it.
    shared = {name: given[name] for name in ("trainer_state", "log_extra", "log_metric")}
    return function(**copy.deepcopy({name: given[name] for name in given if name not in shared}), **shared)


def retried(call: Callable[[], T], times: int) -> T:
    """Returns the value of a call, which is repeated up to some times, after growing pauses, on a `RewardError`."""
    for number in range(times):
        try:
            return call()
        except OverdueError:
            raise
        except RewardError as error:
            pause = min(2.0**number, LONGEST_PAUSE)
            if is_over(pause):
                raise
            logger.warning("%s\nIt is called again in %g seconds (%d of %d).", error, pause, number + 1, times)
            time.sleep(pause)
    return call()


def check_signature(function: Any, columns: Iterable[str]) -> None:
    """Refuses a function that TRL could not call with these columns, before anything is loaded."""
    if not callable(function):
        raise RewardError(f"the reward is {show(function)}, a {type(function).__name__}: give a function.")
    passed = [*PASSED_BY_TRL, *columns]
    try:
        inspect.signature(function).bind(**dict.fromkeys(passed))
    except ValueError:  # some builtins have no signature: the call itself will tell
        return
    except TypeError as error:
        raise RewardError(
            f"reward function {describe(function)} cannot be called as TRL calls it: {error}. It gets by name: "
            f"{', '.join(passed)}. Add **kwargs to its parameters, or the column to the data."
        ) from error


def describe(function: Callable[..., Any], error: BaseException | None = None) -> str:
    """Returns "'name' (file:line)": the line of the function or, with an error, the line of its file that raised."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    inner = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(inner, "__code__", None) or getattr(vars(type(inner)).get("__call__"), "__code__", None)
    if code is None:
        return f"'{name}'"
    frames = traceback.extract_tb(error.__traceback__) if error else []
    lines = [frame.lineno for frame in frames if frame.filename == code.co_filename]
    return f"'{name}' ({code.co_filename}:{lines[-1] if lines else code.co_firstlineno})"


def said(error: BaseException, where: str = "", width: int = 1000) -> str:
    """Returns the type and the beginning of the text of an exception of the user's code, which may fail in any way."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "an error whose text cannot be read"
    return f"{type(error).__name__}{where}: {text if len(text) <= width else text[:width] + ' ...'}"


def show(value: Any, width: int = 120) -> str:
    """Returns a value as one short line."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and "content" in value[-1]:
        value = value[-1]["content"]
    try:
        text = repr(value).replace("\n", " ")
    except Exception:  # of the user's own class
        text = object.__repr__(value)
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"


def as_number(value: Any) -> float | None:
    """Returns a finite float, or None if the value is not a reward."""
    if not isinstance(value, numbers.Real) and hasattr(value, "item"):
        try:
            value = value.item()  # scalars of numpy and torch
        except (RuntimeError, TypeError, ValueError):  # more than one element
            return None
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except Exception:  # of the user's own class
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST else None


def wait_for(value: Any) -> Any:
    """Returns the result of a coroutine, also inside a running event loop, and any other value unchanged."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run_coroutine_threadsafe(wait(), _event_loop()).result()


@functools.lru_cache(maxsize=1)
def _event_loop() -> asyncio.AbstractEventLoop:
    # In a thread of its own, because a notebook already runs a loop; and only one, because a reward may keep a client
    # that belongs to the loop in which it was made.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="autolayer-rewards", daemon=True).start()
    return loop
