"""Undoes what a user's code changes in the process, such as the working directory."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def keeping_process_state() -> Iterator[None]:
    """Restores the working directory, and torch's default dtype and gradient mode, when the block ends.

    Rewards and environments are called in the middle of training. One that calls `os.chdir` would move the run folder,
    and one that calls `torch.set_grad_enabled(False)` would end training.
    """
    folder = os.open(".", os.O_RDONLY)
    torch = sys.modules.get("torch")  # this module does not load it
    modes = (torch.get_default_dtype(), torch.is_grad_enabled()) if torch else None
    try:
        yield
    finally:
        os.fchdir(folder)  # the user's code may have deleted the folder where it is now
        os.close(folder)
        if torch and modes:
            torch.set_default_dtype(modes[0])
            torch.set_grad_enabled(modes[1])
