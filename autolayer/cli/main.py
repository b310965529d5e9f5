"""The console script: runs a command and turns its end into an exit code.

Exit codes: 0 for every verdict, 2 for an error that the user can correct (one sentence on stderr), 1 for a bug of
autolayer, 130 for Ctrl-C.
"""

import errno
import logging
import os
import sys
import time
import traceback
import warnings
from typing import Any

import click

from autolayer.cli.commands import cli
from autolayer.core.errors import AutolayerError, LoneRankError, OverdueError, is_disk_full, is_out_of_memory
from autolayer.core.launch import is_first_process, num_processes
from autolayer.core.shown_text import hide_secrets, visible

_format_warning = warnings.formatwarning
EXIT_DELAY = 5.0
"""Seconds that the other ranks wait before they exit, so that rank 0 can print its message."""

DISK_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
)  # fmt: skip
"""Error numbers of the disk that the user can correct."""


def main(arguments: list[str] | None = None) -> None:
    """Runs a command, by default that of the process's arguments, and exits with its exit code."""
    state = {"debug": False}
    _open_standard_streams()
    # peft imports bitsandbytes where it is installed, and it warns about kernels that are not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.formatwarning = _visible_warning
    if logging.lastResort is not None:  # it prints the warnings of all loggers that nobody has set up
        logging.lastResort.setFormatter(_VisibleFormatter())
    try:
        code = cli.main(arguments, prog_name="autolayer", standalone_mode=False, obj=state)
    except Exception as error:
        code, sentence = _explain(error)
        if state["debug"] and code != 130:
            click.echo(visible(hide_secrets(traceback.format_exc())), err=True)
        if is_first_process() or isinstance(error, LoneRankError):
            click.echo(f"autolayer: {visible(hide_secrets(sentence))}", err=True)
        if code and (num_processes() > 1 or isinstance(error, OverdueError)):
            sys.stderr.flush()
            if not is_first_process():  # the launcher ends all ranks once one has exited
                time.sleep(EXIT_DELAY)
            os._exit(code)  # an ordinary exit would wait for the other ranks, and for threads of a reward that hangs
    sys.exit(code if isinstance(code, int) else 0)


def _open_standard_streams() -> None:
    """Opens those of the three standard streams that the caller has closed, or the next files would be in their place.

    Without this, what a library prints would be written into the study.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _visible_warning(*arguments: Any, **options: Any) -> str:
    return visible(hide_secrets(_format_warning(*arguments, **options)))


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(hide_secrets(super().format(record)))


def _explain(error: Exception) -> tuple[int, str]:
    if isinstance(error, click.Abort):  # Ctrl-C
        return 130, "interrupted: the same command resumes where it stopped"
    if isinstance(error, AutolayerError | click.ClickException):
        return 2, f"error: {error.format_message() if isinstance(error, click.ClickException) else error}"
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        cure = (
            "Free some space, or raise the limit of your quota or of the size of files (ulimit -f), and repeat the "
            "command, which resumes; or give another --out"
            if is_disk_full(error)
            else "Give another path"
        )
        return 2, f"error: {error.filename or 'a file'}: {error.strerror}. {cure}."
    if is_out_of_memory(error):
        return (
            2,
            "error: the memory ran out: give a smaller --prompts-per-step or --max-new-tokens, or another --device.",
        )
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return 1, f"this is a bug of autolayer ({what}): run the same command with --debug to see where."
