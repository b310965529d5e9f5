"""The cluster files call commands that exist, with options that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import yaml

from autolayer.cli import cli

FOLDER = Path(__file__).parent.parent / "examples" / "cluster"


def parses(words: list[str]) -> None:
    command = cli.commands[words[1]]
    command.make_context(words[1], [word.replace("$(STORAGE)", "sqlite:///x.db") for word in words[2:]])


def test_the_slurm_script_is_a_script_and_its_command_parses() -> None:
    path = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("autolayer ")]
    parses(shlex.split(line))
    options = re.findall(r"^#SBATCH (--[a-z-]+)", path.read_text(), flags=re.MULTILINE)
    assert {"--array", "--requeue", "--gpus-per-node"} <= set(options)


def test_the_kubernetes_job_is_one_and_its_command_parses() -> None:
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert {mount["name"] for mount in worker["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    parses([*worker["command"], *worker["args"]])
    with_typo = [*worker["command"], "--modle=x"]
    try:
        parses(with_typo)
    except click.UsageError:
        return
    raise AssertionError("an option that does not exist would pass")
