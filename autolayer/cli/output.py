"""Output of the commands: rank 0 prints the report or the JSON on stdout, and everything else on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autolayer.core.launch import is_first_process

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autolayer.reporting.results import PickResult


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


def print_found(text: str, renderable: RenderableType, as_json: bool) -> None:
    """Prints the result of a command, on rank 0 only.

    Args:
        text: The JSON, printed with --json.
        renderable: The report, printed otherwise.
        as_json: True with --json.
    """
    if not is_first_process():
        return
    if as_json:
        return click.echo(text)
    import rich

    rich.get_console().print(renderable, crop=False)  # so that a command in the report can be copied whole


def print_result(result: PickResult, folder: Path, as_json: bool, show_all: bool = False) -> None:
    """Prints the report of `pick` or `train`, or the text of result.json.

    Args:
        result: The result.
        folder: The run folder, which the report names.
        as_json: True with --json.
        show_all: Show every layer of a long ranking.
    """
    from autolayer.reporting.terminal import Report

    print_found(result.to_json(), Report(result, folder=folder, show_all=show_all), as_json)
