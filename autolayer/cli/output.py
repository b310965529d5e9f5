"""Output of the commands: rank 0 prints the report or the JSON on stdout, and everything else on stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from autolayer.core.launch import is_first_process


@contextlib.contextmanager
def only_stderr() -> Iterator[None]:
    """Redirects the output of libraries and their child processes to stderr while the block runs."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def print_found(found: Any, as_json: bool, report: Any = None) -> None:
    """Prints what a command found, on rank 0 only.

    Args:
        found: It has `to_dict`, whose value is printed with --json.
        as_json: True with --json.
        report: Rich's renderable that is printed otherwise; default: that of `found.render`.
    """
    if not is_first_process():
        return
    if as_json:
        return click.echo(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    import rich

    # Not cropped, so that a command in the report can be copied whole.
    rich.get_console().print(found.render() if report is None else report, crop=False)
