"""Measures how much short runs tell: contribution at the end against the score after a quarter of the steps, by layer.

    python examples/layerbench/early.py --work runs/layerbench    # after `run.py measure`, whose run folders it reads

`quarter` is each layer at the best of its rates after a quarter of the steps, `whole` one whole run of one seed; both
are scored on `select`, the contribution on `eval` and three seeds. The second table is `quarter` at a single rate: the
one at which every layer moves the policy equally far by a very small step, or by steps as large as training takes
(probes/starting_rates.py), each times a factor; rewards between the measured rates are interpolated, and beyond them
those of the last rate are taken. All of it is the measured runs' own first seed, so an upper bound on what new runs
would tell.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from environments import ENVIRONMENTS
from rich.console import Console
from rich.table import Table
from run import SEEDS

from autolayer.comparison.metrics import regret, spearman
from autolayer.core.run_folder import PROBE
from autolayer.measurement.training_runs import MEASURED_FILE
from autolayer.reporting.contribution import Contribution

FACTORS = (1 / 3, 2 / 3, 1.0, 4 / 3, 2.0)


def scores(found: Contribution, rewards: dict[str, list[float]], step: int) -> np.ndarray:
    """Mean reward of each layer at each rate after `step` steps, (layers, rates); nan where it was not run."""
    keys = [
        [f"layer-{layer}_rate-{rate:g}_seed-0 step {step} select" for rate in found.rates] for layer in found.layers
    ]
    return np.array([[np.mean(rewards[key]) if key in rewards else np.nan for key in row] for row in keys])


def at_rates(score_L_K: np.ndarray, rates: tuple[float, ...], rate_L: np.ndarray) -> np.ndarray:
    """Each layer's score at a rate of its own, between the measured ones on a logarithmic scale."""
    return np.array([np.interp(np.log(r), np.log(rates), row) for r, row in zip(rate_L, score_L_K, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"))
    work = parser.parse_args().work
    columns = ("quarter: Spearman", "regret", "whole: Spearman", "regret")
    table = Table("environment", *columns, title="What short runs tell")
    rows, single = [], {(name, factor): [] for name in ("small", "far") for factor in FACTORS}
    for folder in sorted(path.parent for path in (work / "measure").glob(f"*/{Contribution.FILE}")):
        if folder.name not in ENVIRONMENTS or ENVIRONMENTS[folder.name].sealed:
            continue
        found, rewards = Contribution.read(folder), json.loads((folder / MEASURED_FILE).read_text())["rewards"]
        truth_L, truth_S_L = list(found.values.values()), np.array(list(found.by_seed().values())).T

        def judged(score_L: np.ndarray, truth_L: list = truth_L, truth_S_L: np.ndarray = truth_S_L) -> list[float]:
            return [spearman(score_L, truth_L) or 0.0, regret(score_L, truth_S_L)]

        quarter_L_K = scores(found, rewards, -(-found.steps // 4))
        whole_L_K = scores(found, rewards, found.steps)
        rows.append(judged(np.nanmax(quarter_L_K, 1)) + judged(np.nanmax(whole_L_K, 1)))
        table.add_row(folder.name, *(f"{value:.2f}" for value in rows[-1]))
        probed = json.loads((work / "probe" / f"{folder.name}.{SEEDS[0]}" / PROBE).read_text())
        far_L = np.array(probed["learning_rates"], dtype=float)
        small_L = far_L / np.array(probed["scores"]["reach"])
        for name, rate_L in (("small", small_L), ("far", far_L)):
            for factor in FACTORS:
                single[name, factor].append(judged(at_rates(quarter_L_K, found.rates, rate_L * factor)))
    table.add_section()
    table.add_row("mean", *(f"{value:.2f}" for value in np.mean(rows, axis=0)))
    second = Table("equal distance by", *(f"x {factor:.2f}" for factor in FACTORS), title="Spearman / regret")
    for name in ("small", "far"):
        means = [np.mean(single[name, factor], axis=0) for factor in FACTORS]
        second.add_row(f"{name} steps", *(f"{s:.2f} / {r:.2f}" for s, r in means))
    console = Console(width=120)
    console.print(table)
    console.print(second)


if __name__ == "__main__":
    main()
