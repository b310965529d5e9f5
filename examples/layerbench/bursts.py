"""Measures how much a few steps tell, and whether a race should be wide or narrow: every layer for 2, 4 and 8 steps.

    python examples/layerbench/bursts.py --work runs/layerbench    # after `run.py build` and `measure`: 20 minutes

Each layer runs at half, one and two times the rate that the probes start it at, one seed. `all` ranks all layers by the
gain on 256 `select` items after so many steps. `wide` takes the better half of all after 2 steps and the best of those
after 4; `narrow` does the same among the four best predictions. Both add half of the training rewards' differences and,
in .02 of a standard deviation, the prediction: simpler than search/curve_model.py, so that only the schedule differs.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import ENVIRONMENTS, Environment
from rich.console import Console
from rich.table import Table
from run import load

from autolayer.comparison.metrics import regret, spearman
from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.pipeline.calibrate_stage import calibrate_stage
from autolayer.pipeline.probe_stage import probe_stage
from autolayer.pipeline.setup import setup
from autolayer.reporting.contribution import Contribution
from autolayer.training.train_arm import train_arm

FACTORS, STEPS = (0.5, 1.0, 2.0), (2, 4, 8)
NUM_ITEMS, NUM_SELECT, PRIOR = 512, 256, 0.02
SEED = 10
"""None that an arm was measured with."""


def run(environment: Environment, work: Path) -> dict[str, Any]:
    """Rewards of every burst; kept in a file, and read from there the next time."""
    path = work / "bursts" / f"{environment.name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    out = work / "bursts" / environment.name
    with setup(Config(**environment.options(work / "bases", SEED), out=out)) as run:
        bench, probed = run.bench, probe_stage(run, calibrate_stage(run)).report
        base = bench.evaluate("select", NUM_ITEMS, seed=SEED).rewards_I
        found: dict[str, Any] = {"base": base, "layers": probed.layers, "predicted": probed.predicted, "runs": {}}
        for layer, rate in zip(probed.layers, probed.learning_rates, strict=True):
            assert rate, f"layer {layer} of {environment.name} moves nothing"
            for factor in FACTORS:
                arm = Arm(layers=(layer,), learning_rate=rate * factor, seed=SEED)
                rows = []
                for step in STEPS:
                    trained = train_arm(bench, arm, step)
                    arm = trained.arm
                    rows.append(
                        [bench.evaluate("select", NUM_ITEMS, seed=SEED, arm=arm).rewards_I, trained.train_rewards_P]
                    )
                found["runs"][f"{layer} {factor:g}"] = rows
                bench.checkpoints.delete(arm)
    path.write_text(json.dumps(found))
    return found


def scores(found: dict[str, Any], factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Gain on `select` after each of the steps, and mean training reward on the way there, each (layers, steps)."""
    rows = [found["runs"][f"{layer} {factor:g}"] for layer in found["layers"]]
    base = np.mean(found["base"][:NUM_SELECT])
    gain_L_T = np.array([[np.mean(select[:NUM_SELECT]) - base for select, _ in row] for row in rows])
    return gain_L_T, np.array([[np.mean(train) for _, train in row] for row in rows])


def halving(gain_L_T: np.ndarray, train_L_T: np.ndarray, prior_L: np.ndarray, width: int) -> int:
    alive = np.argsort(-prior_L, kind="stable")[:width]
    for step, keep in enumerate(((len(alive) + 1) // 2, 1)):
        score_L = gain_L_T[:, step] + 0.5 * (train_L_T[:, step] - train_L_T[alive, step].mean()) + PRIOR * prior_L
        alive = alive[np.argsort(-score_L[alive], kind="stable")][:keep]
    return int(alive[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    judged: dict[tuple[float, str], list[tuple[float, float]]] = defaultdict(list)
    for environment in ENVIRONMENTS.values():
        stored = load(environment)
        if environment.sealed or not stored:
            continue
        found, measured = run(environment, options.work), Contribution.from_dict(stored["contribution"])
        truth_L, truth_S_L = np.array(list(measured.values.values())), np.array(list(measured.by_seed().values())).T
        predicted_L = np.array(found["predicted"])
        prior_L = (predicted_L - predicted_L.mean()) / max(1e-9, float(predicted_L.std()))
        for factor in FACTORS:
            gain_L_T, train_L_T = scores(found, factor)
            for index, step in enumerate(STEPS):
                gain_L = gain_L_T[:, index]
                judged[factor, f"all, {step} steps"].append((spearman(gain_L, truth_L) or 0, regret(gain_L, truth_S_L)))
            for name, width in (("wide", len(truth_L)), ("narrow", 4)):
                chosen = np.zeros(len(truth_L))
                chosen[halving(gain_L_T, train_L_T, prior_L, width)] = 1
                judged[factor, name].append((np.nan, regret(chosen, truth_S_L)))
    names = list(dict.fromkeys(name for _, name in judged))
    table = Table("rate", *names, title="Spearman / regret")
    for factor in FACTORS:
        means = [np.mean(judged[factor, name], axis=0) for name in names]
        table.add_row(f"x {factor:g}", *(f"{s:.2f} / {r:.3f}" if np.isfinite(s) else f"{r:.3f}" for s, r in means))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
