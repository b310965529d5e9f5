"""Errors that are the user's to mend: what is wrong, why it cannot work, what to do instead.

The command line prints them as one sentence and exits with code 2. Everything else is a bug of ours (code 1).
All are picklable: they cross process borders.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutolayerError(Exception):
    """Base of every error with a sentence meant for the user."""


class ConfigError(AutolayerError, ValueError):
    """An option, or a combination of options, cannot work."""


class UnknownNameError(ConfigError):
    """A model, task, algorithm or probe that does not exist. Built by `unknown()`."""


class ModelError(AutolayerError, ValueError):
    """A model or tokenizer that cannot be trained layer by layer."""


class LayerError(AutolayerError, ValueError):
    """A layer that the model does not have, or a freeze that did not hold."""


class DataError(AutolayerError, ValueError):
    """Training data that cannot be read."""


class RewardError(AutolayerError, ValueError):
    """A reward function that raised or returned something other than one finite number per completion."""


class SandboxError(AutolayerError, RuntimeError):
    """There is no sandbox for the programs that a model writes, or it failed."""


class EpisodeError(AutolayerError, RuntimeError):
    """An environment that raised, or returned something other than an observation, a number and whether it is done."""


class NoSignalError(AutolayerError, RuntimeError):
    """The base model's rewards do not vary, so RL has nothing to learn from."""


class TrainingError(AutolayerError, RuntimeError):
    """Training diverged."""


class EngineError(AutolayerError, RuntimeError):
    """The rollout engine failed, or has other weights than the policy."""


class ProcessGroupError(AutolayerError, RuntimeError):
    """One of several processes of a run failed, so all of them end."""


class LoneRankError(ProcessGroupError):
    """This process failed where it could not tell the others, which the launcher has to end."""


class RunFolderError(AutolayerError, RuntimeError):
    """A run folder that is damaged or belongs to another configuration."""


class PatchError(AutolayerError, RuntimeError):
    """A layer patch that is damaged, belongs to another base, or does not fit on the disk."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Builds the error for a name that does not exist, with the nearest known one first.

    Args:
        kind: What it was meant to be: "task", "model", ...
        name: What the user wrote.
        known: Every valid name.
        hint: How to bring one's own, as a full sentence.
    """
    names = list(known)
    text = f"unknown {kind} '{name}'.{did_you_mean(name, names)} Known {kind}s: {', '.join(names)}."
    return UnknownNameError(f"{text} {hint}".rstrip())


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns a sentence with the nearest known name and a space before it, or an empty text."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def one_of(names: Iterable[object]) -> str:
    """Returns names as a choice: 'grpo, dr_grpo or gigpo'."""
    *names, last = map(str, names)
    return f"{', '.join(names)} or {last}" if names else last
