"""Output of the commands: rank 0 prints the report or the JSON on stdout, and everything else on stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from autolayer.core.launch import is_first_process
from autolayer.core.shown_text import visible


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
        with contextlib.suppress(OSError):  # a user's code may have closed it, which must not hide another error
            os.dup2(saved, 1)
            os.close(saved)


def print_found(found: Any, as_json: bool, report: Any = None) -> None:
    """Prints, on rank 0 only, `found.to_dict()` as JSON, or else the report (default: `found.render()`) with rich."""
    if not is_first_process():
        return
    if as_json:
        return click.echo(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    import rich

    # Not cropped, so that a command in the report can be copied whole.
    shown = _Visible(found.render() if report is None else report)
    rich.get_console().print(shown, crop=False, markup=False)


class _Visible:
    """Renders something with the control characters in it made visible, since others may have written its texts."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for part in console.render(self.content, options):
            yield part if part.control else part._replace(text=visible(part.text))
