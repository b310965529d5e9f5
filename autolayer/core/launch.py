"""Reads the environment variables with which a launcher such as torchrun describes the processes it started."""

import os
import re

from autolayer.core.errors import ConfigError

_NUMBERS = {
    "WORLD_SIZE": r"[1-9]\d*", "RANK": r"-1|\d+", "LOCAL_RANK": r"-1|\d+", "LOCAL_WORLD_SIZE": r"[1-9]\d*",
    "MASTER_PORT": r"\d+",
}  # fmt: skip
_NEEDED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_CURE = (
    "start several processes with `torchrun --nproc_per_node N -m autolayer ...`, or unset WORLD_SIZE, RANK, "
    "LOCAL_RANK and LOCAL_WORLD_SIZE for one."
)


def settle_launcher() -> None:
    """Removes what a container sets for a single process, and torch cannot use, from the environment.

    Raises:
        ConfigError: A variable is no number, or those of several processes are incomplete.
    """
    found = {name: os.environ[name] for name in _NUMBERS if name in os.environ}
    if wrong := [f"{name}={value!r}" for name, value in found.items() if not re.fullmatch(_NUMBERS[name], value)]:
        raise ConfigError(f"the environment has {', '.join(wrong)}, which no launcher sets: {_CURE}")
    if missing := _missing():
        highest = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # of a single process
        if several := [f"{name}={found[name]}" for name, one in highest.items() if int(found.get(name, one)) > one]:
            raise ConfigError(
                f"the environment has {several[0]}, as of several processes, but no {', '.join(missing)}, by which "
                f"they find each other: {_CURE}"
            )
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def num_processes() -> int:
    """Returns the number of processes that the launcher started, this one included; 1 if it does not say all of it."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and not _missing() else 1


def processes_here() -> int:
    """Returns the number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Returns True on rank 0, the only process that prints."""
    return num_processes() < 2 or os.environ.get("RANK", "0") == "0"


def _missing() -> list[str]:
    return [name for name in _NEEDED if not os.environ.get(name)]
