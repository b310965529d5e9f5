"""The processes that a launcher such as torchrun started together, as its environment variables describe them."""

from __future__ import annotations

import os


def num_processes() -> int:
    """Returns how many processes the launcher started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Returns how many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Returns whether this is rank 0, which alone prints."""
    return num_processes() < 2 or os.environ.get("RANK", "0") == "0"
