"""Every command of the pages is read by the real parsers, and the short examples run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import autolayer
from autolayer.cli.commands import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FILES = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")), *sorted(ROOT.glob("docs/*.md")))
PAGES = {path.name: path.read_text() for path in FILES}
LINES = dict.fromkeys(re.findall(r"^ {4}(autolayer .+)$", "\n".join(PAGES.values()), re.MULTILINE))
COMMANDS = [line.split("#")[0].split() for line in LINES]
EXAMPLES = sorted((ROOT / "examples").glob("**/*.py"))
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*FILES, *sorted((ROOT / "examples").glob("**/*.md")), *EXAMPLES)
    if path.name != "RESULTS.md"  # a log: its commands are those of their day
}


def test_the_readme_has_commands() -> None:
    assert {words[1] for words in COMMANDS} >= {"pick", "merge"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_pages_parses(words: list[str]) -> None:
    command = cli.commands[words[1]]
    with command.make_context(words[1], list(words[2:]), resilient_parsing=False) as context:
        assert not context.args


@pytest.mark.parametrize("page", TEXTS)
def test_every_option_that_a_page_or_an_example_names_exists(page: str) -> None:
    """Commands in a sentence are not complete, so only their names and options are looked up."""
    for line in re.findall(r"(?:`|^ *(?:\$ )?)autolayer ([a-z]+\b[^`\n]*)(?:`|$)", TEXTS[page], re.MULTILINE):
        name, *words = line.split("#")[0].split()
        if name in cli.commands:
            parameters = cli.commands[name].get_params(click.Context(cli.commands[name]))
            known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
            assert {word.split("=")[0] for word in words if word.startswith("-")} <= known, line
        else:
            assert not any(word.startswith("--") for word in words), line
    for script, rest in re.findall(r"(?:python|[0-9]) (examples/[\w/]+\.py)([^`\n#]*)", TEXTS[page]):
        source = (ROOT / script).read_text()
        assert all(f'"{option}"' in source for option in re.findall(r"(?<!\S)(--[a-z][a-z0-9-]*)", rest)), script + rest


@pytest.mark.parametrize("page", [*PAGES, ".github/workflows/ci.yml"])
def test_every_make_target_of_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = PAGES.get(page) or (ROOT / page).read_text()
    named = set(re.findall(r"(?:^ {4}(?:\$ )?|`)make ([a-z-]+)", text, re.MULTILINE))
    for listed in re.findall(r"target: \[(.+)\]", text):
        named |= set(listed.split(", "))
    assert named <= targets


@pytest.mark.parametrize("page", ["README.md", "AGENTS.md", "examples/README.md"])
def test_every_link_of_a_page_exists(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXTS[page]) if "://" not in link]
    assert links and all((ROOT / page).parent.joinpath(link).exists() for link in links)


def test_every_test_and_module_that_a_page_names_exists() -> None:
    named = re.findall(r"`((?:tests|autolayer|search|probes)/[\w/]+\.py)`", "\n".join(PAGES.values()))
    assert len(named) > 60 and not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


def test_every_name_of_the_library_that_the_readme_uses_exists() -> None:
    for name in set(re.findall(r"autolayer\.([a-z_]+)", README)) - {"schema"}:
        home = ROOT / "autolayer" / name
        assert name in autolayer.__all__ or home.exists() or home.with_suffix(".py").exists(), name


def test_every_script_of_the_examples_is_in_a_table() -> None:
    for script in EXAMPLES:
        page = next(each for folder in script.parents if (each := folder / "README.md").exists())
        assert f"`{script.relative_to(page.parent)}" in page.read_text(), f"{page.relative_to(ROOT)}: {script.name}"


def test_the_tables_of_the_examples_name_only_what_exists() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    named = re.findall(r"^\| \[?`([^`]+)`", page, re.MULTILINE)
    assert len(named) > 20 and all((ROOT / "examples" / name).exists() for name in named)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "examples/own_trainer.py --steps 3",
        "examples/every_layer.py --steps 2 --full-rates 1e-3 --out {tmp}/every",
        "examples/every_task.py --only nothing",
        "examples/depth_prior.py",
        "examples/benchmarks/race_simulation.py --studies 2",
        "examples/make_tiny.py tiny-qwen2 --steps 5 --prompts 8 --out {tmp}/tiny",
    ],
)
def test_every_example_runs(command: str, tmp_path: Path) -> None:
    arguments = shlex.split(command.format(tmp=tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
