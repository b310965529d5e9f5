"""The blocks of docs/hand-over.md: what the command prints, and code that runs."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import autolayer
from autolayer.cli.commands import cli
from autolayer.models.loading import load_model
from autolayer.reporting.export import TRAINERS

PAGE = (Path(__file__).parents[2] / "docs" / "hand-over.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL))


def test_the_output_is_that_of_the_command() -> None:
    assert len(BLOCKS) == PAGE.count("```") / 2
    command = next(line for line in PAGE.splitlines() if "--model tiny" in line).split()
    done = CliRunner().invoke(cli, command[1:], catch_exceptions=False)
    assert done.stdout == BLOCKS["yaml"] and yaml.safe_load(done.stdout)


def test_the_code_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("tiny", "cpu").model
    with autolayer.train_only(model, 2, quiet=True):
        exec(BLOCKS["python"], {"model": model})
    assert capsys.readouterr().out == BLOCKS["text"]


def test_every_trainer_has_a_row() -> None:
    assert re.findall(r"^\| `([a-z][\w-]*)` \|", PAGE, re.MULTILINE) == list(TRAINERS)
