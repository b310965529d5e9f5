"""The console script: runs a command and turns whatever ends it into an exit code.

Exit codes: 0 for every verdict, 2 for what the user can mend (one sentence on stderr), 1 for a bug of ours, 130 for
Ctrl-C.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import traceback

import click

from autolayer.cli.commands import cli
from autolayer.core.errors import AutolayerError, LoneRankError
from autolayer.core.launch import is_first_process, num_processes

LAST_WORDS = 5.0
"""Seconds that rank 0 has to print its sentence before the other ranks leave."""

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, *FULL)
"""Errors of the disk, which the user can mend."""


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and leaves with its exit code.

    Args:
        arguments: Words of the command line; default: those of the process.
    """
    state = {"debug": False}
    # peft imports it, and it advises on kernels that are not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        code = cli.main(arguments, prog_name="autolayer", standalone_mode=False, obj=state)
    except Exception as error:
        code, sentence = _explain(error)
        if state["debug"] and code != 130:
            traceback.print_exc()
        if is_first_process() or isinstance(error, LoneRankError):
            click.echo(f"autolayer: {sentence}", err=True)
        if code and num_processes() > 1:
            sys.stderr.flush()
            if not is_first_process():  # once one rank has left, the launcher ends the others
                time.sleep(LAST_WORDS)
            os._exit(code)  # an ordinary end would wait for the other ranks
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[int, str]:
    """Returns the exit code and the sentence for an error."""
    if isinstance(error, click.Abort):  # Ctrl-C
        return 130, "interrupted: the same command resumes where it stopped"
    if isinstance(error, AutolayerError | click.ClickException):
        return 2, f"error: {error.format_message() if isinstance(error, click.ClickException) else error}"
    if isinstance(error, OSError) and error.errno in NO_DISK:
        cure = "Make room, or give another --out" if error.errno in FULL else "Give an --out that you may write to"
        return 2, f"error: {error.filename or 'a file'}: {error.strerror}. {cure}."
    if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported here
        return 2, "error: the device ran out of memory: give a smaller --prompts-per-step or --max-new-tokens."
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return 1, f"this is a bug of autolayer ({what}): run the same command with --debug to see where."
