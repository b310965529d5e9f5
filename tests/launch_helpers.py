"""Starts the command in several processes and compares what they leave."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autolayer.models.loading import load_model

TINY = ("--model", "tiny", "--task", "math:arith", "--device", "cpu", "--num-eval", "101")


SHORT = (*TINY, "--steps", "12", "--prompts-per-step", "6", "--group-size", "4")


def launch(
    num: int, *arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "autolayer")
) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num)) if num > 1 else ()
    # A process group of its own: what a dead launcher leaves behind goes with it.
    running = subprocess.Popen(
        [sys.executable, *launcher, *program, *arguments], cwd=cwd, stdout=subprocess.PIPE,
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
