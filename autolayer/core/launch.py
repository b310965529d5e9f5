"""Reads the environment variables with which a launcher such as torchrun describes the processes it started."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from autolayer.core.errors import ConfigError

_NUMBERS = {
    "WORLD_SIZE": r"[1-9]\d*", "RANK": r"-1|\d+", "LOCAL_RANK": r"-1|\d+", "LOCAL_WORLD_SIZE": r"[1-9]\d*",
    "MASTER_PORT": r"\d+",
}  # fmt: skip
_NEEDED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_variables() -> None:
    """Refuses variables that no launcher sets.

    Raises:
        ConfigError: A variable is no number, or those of several processes are incomplete.
    """
    found = {name: os.environ[name] for name in _NUMBERS if name in os.environ}
    missing = _missing()
    if missing:
        found.pop("MASTER_PORT", None)  # Kubernetes sets one, an address, for a service named master
    cure = (
        "start several processes with `torchrun --nproc_per_node N -m autolayer ...`, or unset "
        f"{', '.join(found)} for one."
    )
    if wrong := [f"{name}={value!r}" for name, value in found.items() if not re.fullmatch(_NUMBERS[name], value)]:
        raise ConfigError(f"the environment has {', '.join(wrong)}, which no launcher sets: {cure}")
    if missing:
        highest = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # of a single process
        if several := [f"{name}={found[name]}" for name, one in highest.items() if int(found.get(name, one)) > one]:
            raise ConfigError(
                f"the environment has {several[0]}, as of several processes, but no {', '.join(missing)}, by which "
                f"they find each other: {cure}"
            )


@contextmanager
def without_incomplete_variables() -> Iterator[None]:
    """Removes what a container sets for a single process, and torch cannot use, while the block runs."""
    names = [name for name in _NUMBERS if name != "MASTER_PORT" and name in os.environ and _missing()]
    removed = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(removed)


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
