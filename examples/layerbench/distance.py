"""Compares distances and numbers of completions for `reach`, by its Spearman with the contribution.

    python examples/layerbench/distance.py --work runs/layerbench    # after `run.py build`; minutes

For every environment that is not sealed, one direction for each layer from two folds of 64 prompts, and the log-ratios
of the third (64 prompts × 8 completions) at eight sizes of step. Each measure of distance gives a step at which it
reaches its threshold; `all` is that step over what a very small one promises, from all completions, `small` the mean
over 40 random choices of 10 prompts × 2 completions.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from environments import ENVIRONMENTS, Environment
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from run import load

from autolayer.comparison.metrics import spearman
from autolayer.core.config import Config
from autolayer.core.probe_plan import ProbePlan
from autolayer.pipeline.setup import setup
from autolayer.probes.context import ProbeContext
from autolayer.probes.shared_batch import make_folds
from autolayer.probes.step_response import stepped
from autolayer.reporting.contribution import Contribution
from autolayer.training.calibration import calibrate
from autolayer.training.logprobs import scoring

# L layers, S sizes of step, B completions.

NATS = (0.05, 0.2, 0.4, 0.8, 1.2, 2.0, 3.0, 5.0)
"""Sizes of step, as the deviation of the log-ratio that a small step promises."""
PROMPTS, GROUP, SMALL_PROMPTS, SMALL_GROUP, DRAWS = 64, 8, 10, 2, 40
PLAN = ProbePlan(fold_prompts=PROMPTS, response_folds=1, response_prompts=8, cutoff_pairs=0)
DISTANCES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "root mean square, 1.5": (lambda r: np.sqrt(np.mean(r**2, -1)), 1.5),
    "root mean square, 0.8": (lambda r: np.sqrt(np.mean(r**2, -1)), 0.8),
    "the same, cut at 3": (lambda r: np.sqrt(np.mean(np.minimum(r**2, 9), -1)), 1.2),
    "mean absolute, 1.2": (lambda r: np.mean(np.abs(r), -1), 1.2),
    "median absolute, 0.5": (lambda r: np.median(np.abs(r), -1), 0.5),
}
"""Distance of log-ratios (..., B), and its threshold."""


def log_ratios(environment: Environment, bases: Path) -> np.ndarray:
    """Shape (L, S, B)."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        setup(Config(**environment.options(bases), out=f"{scratch}/run")) as run,
    ):
        bench, layers = run.bench, run.candidates
        _, rollouts = calibrate(bench, PROMPTS, 0)
        folds = make_folds(bench, rollouts, PROMPTS, 3, 0)
        context = ProbeContext(bench=bench, layers=layers, folds=folds, plan=PLAN, seed=0)
        found = []
        for layer in layers:
            direction, promised = context.direction(layer, without=0), context.deviation(layer)
            with scoring(bench.model, bench.engine.temperature), torch.no_grad():
                before_B = context.steps.log_probs(folds[0].batch)
                for nats in NATS:
                    with stepped(bench.model, direction, nats / promised):
                        found.append((context.steps.log_probs(folds[0].batch) - before_B).numpy())
    return np.array(found).reshape(len(layers), len(NATS), -1)


def reaches(ratios_L_S_B: np.ndarray, distance: Callable[[np.ndarray], np.ndarray], threshold: float) -> np.ndarray:
    """The step at which each layer has gone that far, (L,), by straight lines in logarithms."""
    logs_L_S = np.log(np.maximum.accumulate(np.maximum(distance(ratios_L_S_B), 1e-4), axis=1))
    log_nats_S, target = np.log(NATS), np.log(threshold)
    rows = []
    for logs_S in logs_L_S:
        beyond = max(0.0, target - logs_S[-1])  # in proportion
        rows.append(np.interp(target, logs_S + 1e-9 * np.arange(len(NATS)), log_nats_S) + beyond)
    return np.exp(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in DISTANCES}
    for environment in ENVIRONMENTS.values():
        found = load(environment)
        if environment.sealed or found is None:
            continue
        measured = Contribution.from_dict(found["contribution"])
        truth_L = np.array(list(measured.values.values()))
        ratios_L_S_B = log_ratios(environment, options.work / "bases")
        for name, (distance, threshold) in DISTANCES.items():
            everything = spearman(reaches(ratios_L_S_B, distance, threshold), truth_L) or 0.0
            small = []
            for _ in range(DRAWS):
                prompts = generator.choice(PROMPTS, SMALL_PROMPTS, replace=False)
                rows = (prompts[:, None] * GROUP + np.arange(SMALL_GROUP)).ravel()
                small.append(spearman(reaches(ratios_L_S_B[:, :, rows], distance, threshold), truth_L) or 0.0)
            scores[name].append((everything, float(np.mean(small))))
    table = Table("distance, threshold", "all", "small", title="Spearman of reach alone, mean", box=MARKDOWN)
    for name, rows in scores.items():
        table.add_row(name, *(f"{value:.2f}" for value in np.mean(rows, axis=0)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
