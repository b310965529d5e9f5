"""Starts the command in several processes and compares what they leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import Command
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from autolayer.models.loading import load_model

TINY = ("--model", "tiny", "--task", "math:arith", "--device", "cpu", "--num-eval", "101")


SHORT = (*TINY, "--steps", "12", "--prompts-per-step", "6", "--group-size", "4")


def launch(num: int, *arguments: str, cwd: Path, program: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command in `num` processes that find each other as torchrun's do; one that fails ends the others."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
               "TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}  # fmt: skip
    ranks = [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)] if num > 1 else [{}]
    running = [Command(*arguments, cwd=cwd, env=env, program=program) for env in ranks]
    until = time.monotonic() + 240
    while None in (codes := [each.returncode for each in running]) and not any(codes) and time.monotonic() < until:
        time.sleep(0.05)
    for each in running:
        if each.returncode is None:
            each.kill()
    if None in codes and not any(codes):
        raise subprocess.TimeoutExpired("autolayer", 240)
    ended = [each.ended() for each in running]
    code = next((code for code in codes if code), 0)
    return subprocess.CompletedProcess(
        ["autolayer"], code, "".join(each.stdout for each in ended), "".join(each.stderr for each in ended)
    )


def torchrun(num: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command under the real launcher, which imports everything once for each process."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num), "-m", "autolayer")
    # A process group of its own: what a dead launcher leaves behind goes with it.
    running = subprocess.Popen(
        [sys.executable, *launcher, *arguments], cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        out, err = running.communicate(timeout=240)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def close(found: object, expected: object) -> None:
    """Equal, but for the last digits of numbers: sums over processes are added up in another order."""
    if isinstance(expected, dict) and isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name])
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-6) if isinstance(expected, float) else expected)


def same_movement(tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Away from the base by the same, but for what Adam makes of the last digits of very small gradients."""
    base = load_model("tiny").model.state_dict()
    assert tensors.keys() == wanted.keys()
    apart = sum(float((tensors[name] - wanted[name]).double().square().sum()) for name in wanted)
    moved = sum(float((w - base[name] if name in base else w).double().square().sum()) for name, w in wanted.items())
    assert 0 < apart**0.5 < 1e-3 * moved**0.5 or apart == 0 < moved
