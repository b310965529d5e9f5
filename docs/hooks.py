"""Writes the help of every command into the page of commands, as a terminal shows it."""

from typing import Any

import click

from autolayer.cli.commands import cli

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the comment in commands.md (an event of MkDocs)."""
    return markdown.replace(PLACE, "\n\n".join(_section(name) for name in sorted(cli.commands)))


def _section(name: str) -> str:
    context = click.Context(cli.commands[name], info_name=f"autolayer {name}", max_content_width=100)
    context.terminal_width = 100
    return f"## {name}\n\n```text\n{cli.commands[name].get_help(context)}\n```"
