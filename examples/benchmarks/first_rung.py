"""What the arms of a first rung take: if each makes its first step alone, if they share rollouts, if passes, too.

    python examples/benchmarks/first_rung.py            # CPU: a minute; `tiny`, math:arith
    python examples/benchmarks/first_rung.py --steps 5  # a longer rung

Every layer of the model is trained for so many steps, without the evaluation that a rung ends with.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.costs import Cost
from autolayer.pipeline.setup import setup
from autolayer.training import checkpoints
from autolayer.training.shared_pass import share_first_step

KINDS = ("nothing", "rollouts", "rollouts and passes")


def rung(kind: str, options: argparse.Namespace) -> tuple[Cost, float, list[float]]:
    """What the rung is billed, its processor seconds (others may be at work here), and a fingerprint of every arm."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(model=options.model, task=options.task, out=scratch + "/run", device="cpu")
        with setup(config) as stages:
            bench = stages.bench
            bench.shares_first = kind != "nothing"
            bench.train(Arm(layers=(0,), learning_rate=1e-4, seed=5), 1)  # what is made once is made
            arms = [Arm(layers=(layer,), learning_rate=1e-3, seed=0) for layer in stages.candidates]
            started, spent, found = time.process_time(), Cost(), []
            if kind == KINDS[2]:
                share_first_step(bench, [(layer,) for layer in stages.candidates], 0)
            for arm in arms:
                segment = bench.train(arm, options.steps)
                spent += segment.cost
                found.append(segment.arm)
            seconds = time.process_time() - started
            tensors = [checkpoints.read(bench.folder.path, arm)[0] for arm in found]
            return spent, seconds, [float(sum(t.double().abs().sum() for t in each.values())) for each in tensors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="math:arith")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(box=MARKDOWN)
    for name in ("shared", "layer-tokens, M", "share", "processor seconds", "share", "arms"):
        table.add_column(name)
    runs = [{kind: rung(kind, options) for kind in KINDS} for _ in range(options.repeats)]  # turn by turn
    first, base = runs[0], min(run[KINDS[0]][1] for run in runs)
    for kind in KINDS:
        cost, seconds = first[kind][0].layer_tokens, min(run[kind][1] for run in runs)
        same = "the same" if first[kind][2] == first[KINDS[0]][2] else "OTHERS"
        share = cost / first[KINDS[0]][0].layer_tokens
        table.add_row(kind, f"{cost / 1e6:.3f}", f"{share:.3f}", f"{seconds:.2f}", f"{seconds / base:.3f}", same)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
