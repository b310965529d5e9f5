"""Reads the environment variables with which a launcher such as torchrun describes the processes it started."""

import os


def num_processes() -> int:
    """Returns the number of processes that the launcher started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Returns the number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Returns True on rank 0, the only process that prints."""
    return num_processes() < 2 or os.environ.get("RANK", "0") == "0"
