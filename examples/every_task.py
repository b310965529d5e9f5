"""Every kind of task, algorithm and family that comes with the package: what `pick` finds and what its training gains.

    python examples/every_task.py                        # 14 runs, one core: about 50 minutes
    python examples/every_task.py --only tiny.code       # those whose name begins so
    python examples/every_task.py --out runs/every_task  # where the runs are kept; finished ones are read, not repeated

Hardware: 2 CPU cores, no GPU. Expected: every line ends with an interval above zero.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import autolayer
from autolayer.core.config import Algorithm, Config
from autolayer.reporting.results import PickResult

MODELS = ("tiny", "tiny-qwen2")
ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "math:arith": ("grpo", "dr_grpo"),
    "code:expr": ("grpo", "dr_grpo"),
    "agent:house": ("grpo", "dr_grpo", "gigpo"),
}


def runs(only: str) -> Iterator[tuple[str, str, Algorithm]]:
    """Model, task and algorithm of every run."""
    for model in MODELS:
        for task, algorithms in ALGORITHMS.items():
            for algorithm in algorithms:
                if f"{model}.{task.partition(':')[0]}.{algorithm}".startswith(only):
                    yield model, task, algorithm


def row(result: PickResult) -> tuple[str, ...]:
    gain = result.gain
    assert gain is not None and result.base_score is not None and result.trained_score is not None
    return (
        result.model,
        result.task,
        result.algorithm,
        ", ".join(map(str, result.trained_layers or ())),
        f"{result.base_score:.3f}",
        f"{result.trained_score:.3f}",
        f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
        f"{result.cost_share_of_full_run or 0:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="MODEL.TASK.ALGORITHM", help="only runs whose name begins so")
    parser.add_argument("--out", type=Path, default=Path("runs/every_task"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(box=MARKDOWN)
    for head in ("model", "task", "algorithm", "layer", "base", "trained", "gain, 95% interval", "cost of finding"):
        table.add_column(head)
    for model, task, algorithm in runs(options.only):
        folder = options.out / f"{model}-{task.replace(':', '-')}-{algorithm}-{options.seed}"
        print(f"{model} {task} {algorithm}", flush=True)
        result = autolayer.pick(
            Config(model=model, task=task, algorithm=algorithm, seed=options.seed, out=folder),
            progress=autolayer.TerminalProgress(),
        )
        table.add_row(*row(result))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
