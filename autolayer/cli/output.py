"""What a command prints: the report or the JSON on stdout, everything else on stderr, by rank 0 alone."""

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
    """Sends what libraries and their child processes print to stderr while the block runs."""
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
    """Prints what a command found.

    Args:
        text: The JSON, for --json.
        renderable: The report, for a person.
        as_json: Print the JSON.
    """
    if not is_first_process():
        return
    if as_json:
        return click.echo(text)
    import rich

    rich.get_console().print(renderable, crop=False)  # a command in it is to be copied whole


def print_result(result: PickResult, folder: Path, as_json: bool, show_all: bool = False) -> None:
    """Prints the result of `pick` or `train`, or the text of result.json."""
    from autolayer.reporting.terminal import Report

    print_found(result.to_json(), Report(result, folder=folder, show_all=show_all), as_json)
