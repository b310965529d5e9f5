"""Errors that the user can correct. Each message says what is wrong, why it cannot work, and what to do instead.

The command line prints them as one sentence and exits with code 2. Any other exception is a bug of autolayer (code 1).
All errors are picklable, because processes send them to each other.
"""

import difflib
import errno
from collections.abc import Iterable


class AutolayerError(Exception):
    """Base class of all errors whose message is meant for the user."""


class ConfigError(AutolayerError, ValueError):
    """An option or a combination of options that cannot work."""


class UnknownNameError(ConfigError):
    """A name of a model, task, algorithm or probe that does not exist. `unknown()` builds it."""


class ModelError(AutolayerError, ValueError):
    """A model or tokenizer that cannot be trained layer by layer."""


class LayerError(AutolayerError, ValueError):
    """A layer that the model does not have, or a freeze that did not hold."""


class DataError(AutolayerError, ValueError):
    """Training data that cannot be read."""


class RewardError(AutolayerError, ValueError):
    """A reward function that raised or returned something other than one finite number per completion."""


class OverdueError(RewardError):
    """A reward function that was still running after --hours."""


class SandboxError(AutolayerError, RuntimeError):
    """A sandbox for the programs that a model writes that is missing or failed."""


class EpisodeError(AutolayerError, RuntimeError):
    """An environment that raised, or did not return an observation, a reward and a flag that ends the episode."""


class NoSignalError(AutolayerError, RuntimeError):
    """Rewards of the base model that do not vary, so that RL has nothing to learn from."""


class TrainingError(AutolayerError, RuntimeError):
    """Training that diverged, or that needs more memory than the device has."""


class EngineError(AutolayerError, RuntimeError):
    """A rollout engine that failed, or has other weights than the policy."""


class ProcessGroupError(AutolayerError, RuntimeError):
    """A failure of one of several processes of a run, which ends all of them."""


class LoneRankError(ProcessGroupError):
    """This process failed where it could not tell the others, which the launcher has to end."""


class SearchError(AutolayerError, RuntimeError):
    """Raised when every short run of the search failed."""


class RunFolderError(AutolayerError, RuntimeError):
    """A run folder that is damaged or belongs to another configuration."""


class PatchError(AutolayerError, RuntimeError):
    """A layer patch that is damaged, belongs to another base, or does not fit on the disk."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True for an error of Python, torch or the system that says that there is no memory left."""
    words = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "os error 12")
    kinds = (type(error).__name__ == "OutOfMemoryError", isinstance(error, MemoryError))  # the first is torch's
    return any(kinds) or (isinstance(error, Exception) and any(word in str(error) for word in words))


def is_disk_full(error: BaseException) -> bool:
    """Returns True if a file cannot grow: the disk is full, or a quota or a limit on the size of files is reached."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors has a type of its own, and the number in its text.
    return getattr(error, "errno", None) in numbers or any(f"os error {number})" in str(error) for number in numbers)


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Builds the error for a name of a `kind` (such as "task") that does not exist; `hint` is a closing sentence."""
    names = list(known)
    text = f"unknown {kind} '{name}'.{did_you_mean(name, names)} Known {kind}s: {', '.join(names)}."
    return UnknownNameError(f"{text} {hint}".rstrip())


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns " Did you mean '...'?" with the nearest known name, or '' if none is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
