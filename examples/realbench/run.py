"""Measures RealBench: trains arm after arm and keeps each learning curve in results/. Ends any time, and resumes.

    python examples/realbench/run.py smollm2.sums.grpo              # every arm: 3 to 20 minutes each on one core
    python examples/realbench/run.py smollm2.sums.grpo --num-arms 8

An arm is trained by the trainer of `autolayer pick`. Kept are the mean reward of every training step, the rewards on
the `select` items after a quarter, a half and all steps, and those on the `eval` items at the end, one digit an item.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_environments import ENVIRONMENTS, Environment, keep, load, rewards

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.errors import TrainingError
from autolayer.pipeline.setup import setup
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

NUM_SELECT = 128


def measure(environment: Environment, model: str | None, num_arms: int | None, seed: int, scratch: Path) -> None:
    """Trains the arms of one seed that are not in the results yet."""
    wanted = [Arm(layers=layers, learning_rate=rate, seed=seed) for layers, rate in environment.arms()[:num_arms]]
    config = Config(**environment.options(model), out=str(scratch / "run"), learning_rate=1e-4)
    with setup(config) as run:
        bench = run.bench
        keep(environment, {"base": {split: digits(bench, split, None) for split in ("select", "eval")}})
        for arm in wanted:
            if arm.key in load(environment)["arms"]:
                continue
            try:
                record = curve(bench, arm, environment.steps)
            except TrainingError as error:
                record = {"failed": str(error)}
            keep(environment, {"arms": load(environment)["arms"] | {arm.key: record}})
            print(f"{environment.name} {arm.key}: {mean(record)}", flush=True)


def curve(bench: Workbench, arm: Arm, steps: int) -> dict[str, Any]:
    """Trains an arm to the end, and returns its record."""
    start, rewards, select, seconds = arm, [], {}, 0.0
    for stop in (steps // 4, steps // 2, steps):
        trained = train_arm(bench, arm, stop)
        num_steps, arm, seconds = stop - arm.step, trained.arm, seconds + trained.cost.seconds
        rewards += np.reshape(trained.train_rewards_P, (num_steps, -1)).mean(1).round(4).tolist()
        select[str(stop)] = digits(bench, "select", arm)
    record = {"train": rewards, "select": select, "eval": digits(bench, "eval", arm), "seconds": round(seconds)}
    bench.checkpoints.delete(start)
    return record


def digits(bench: Workbench, split: str, arm: Arm | None) -> str:
    """Returns the rewards of a model on the items of a split, one digit each: 0 for 0 to 9 for 1."""
    num_items = NUM_SELECT if split == "select" else bench.config.num_eval or 0
    rewards_I = bench.evaluate(split, num_items, seed=0, arm=arm).rewards_I
    return "".join(str(round(9 * reward)) for reward in rewards_I)


def mean(record: dict[str, Any]) -> str:
    return record.get("failed") or f"{rewards(record['eval']).mean():.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", choices=ENVIRONMENTS, metavar="ENVIRONMENT")
    parser.add_argument("--model", help="folder of the model; default: the name that the environment has for it")
    parser.add_argument("--num-arms", type=int, help="stop after so many arms of each environment")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.environments:
        with tempfile.TemporaryDirectory() as scratch:
            measure(ENVIRONMENTS[name], options.model, options.num_arms, options.seed, Path(scratch))


if __name__ == "__main__":
    main()
