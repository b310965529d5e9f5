"""How much short runs tell: contribution at the end against the score after a quarter of the steps, by layer.

    python examples/layerbench/early.py --work runs/layerbench    # after `run.py measure`, whose run folders it reads

`quarter` is each layer at the best of its rates after a quarter of the steps, `whole` one whole run of one seed; both
are scored on `select`, the contribution on `eval` and three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from environments import ENVIRONMENTS
from rich.console import Console
from rich.table import Table

from autolayer.comparing.metrics import regret, spearman
from autolayer.contribution import NAME, Contribution, read
from autolayer.measuring.trials import MEASURED


def scores(found: Contribution, rewards: dict[str, list[float]], step: int) -> np.ndarray:
    """Best mean reward of each layer over its rates at a step, (layers,)."""
    ends = f" step {step} select"
    return np.array(
        [
            max(np.mean(r) for key, r in rewards.items() if key.startswith(f"layer-{layer}_") and key.endswith(ends))
            for layer in found.layers
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"))
    options = parser.parse_args()
    columns = ("quarter: Spearman", "regret", "whole: Spearman", "regret")
    table = Table("environment", *columns, title="What short runs tell")
    rows = []
    for folder in sorted(path.parent for path in (options.work / "measure").glob(f"*/{NAME}")):
        if folder.name not in ENVIRONMENTS or ENVIRONMENTS[folder.name].sealed:
            continue
        found, rewards = read(folder), json.loads((folder / MEASURED).read_text())["rewards"]
        truth_L, truth_S_L = list(found.values.values()), np.array(list(found.by_seed().values())).T
        row = []
        for step in (-(-found.steps // 4), found.steps):
            score_L = scores(found, rewards, step)
            row += [spearman(score_L, truth_L) or 0.0, regret(score_L, truth_S_L)]
        rows.append(row)
        table.add_row(folder.name, *(f"{value:.2f}" for value in row))
    table.add_section()
    table.add_row("mean", *(f"{value:.2f}" for value in np.mean(rows, axis=0)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
