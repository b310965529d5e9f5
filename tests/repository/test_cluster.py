"""The cluster files call commands that exist, with options that parse."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import click
import yaml

from autolayer.cli.commands import cli
from autolayer.rollouts.engines.vllm_server import START

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"


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


def test_the_server_job_serves_as_the_engine_wants_it_and_stops_with_its_server(tmp_path: Path) -> None:
    """Run for real, with stand-ins for Slurm and for what it starts."""
    script = FOLDER / "slurm-server.sh"
    said = tmp_path / "said"
    stand_ins = {
        "scontrol": "echo one; echo two",
        "srun": f'echo "$@" >> {said}; case "$*" in *serve*) echo $$ > {tmp_path / "pid"}; exec sleep 60;; esac',
        "curl": f"test -s {tmp_path / 'pid'}",
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "x", "SHARED": "/s"}
    subprocess.run(["bash", str(script)], env=environment, check=True, timeout=30)
    server = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    until = time.monotonic() + 20  # the signal is sent; a busy machine takes a while to deliver it
    while server.exists() and server.read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the server ends with the job"
        time.sleep(0.05)
    serve, train = sorted(said.read_text().splitlines(), key=lambda line: "serve" not in line)
    started = START.replace("MODEL", "Qwen/Qwen3-32B").replace("DTYPE", "bfloat16")
    assert started in serve and "--nodelist=one" in serve and "--nodelist=two" in train
    words = shlex.split(train)
    parses(words[words.index("-m") + 1 :])
    assert words[words.index("--rollouts") + 1] == "http://one:8000"

    (tmp_path / "curl").write_text("#!/bin/bash\nfalse\n")
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 3\n")
    done = subprocess.run(["bash", str(script)], env=environment, timeout=60, capture_output=True)
    assert done.returncode != 0, "a server that ended is not waited for"
