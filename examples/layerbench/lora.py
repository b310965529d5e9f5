"""LoRA on every linear map of every layer (PEFT, rank 16), by the trainer that trains the layers: a baseline.

The same prompts, seeds, steps and rates as the arms of `autolayer measure`, every rate for all steps, the best on
`select`. A rate that diverges is out.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environments import RATES, Environment

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.errors import TrainingError
from autolayer.models import lora
from autolayer.pipeline.setup import setup
from autolayer.training.train_arm import train_arm


def gains(environment: Environment, bases: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Gain over the base on the `eval` items for each seed, and the rate that was chosen."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(**environment.options(bases), out=f"{scratch}/run")
        with setup(config) as run:
            bench, num_eval, steps = run.bench, run.config.num_eval or 0, environment.steps
            base_I = np.array(bench.evaluate("eval", num_eval, seed=0).rewards_I)
            bench.adapt(range(len(bench.layers)), seed=0)

            def after(rate: float, seed: int) -> tuple[float, float]:
                """Score on `select`, and gain on `eval`."""
                arm = train_arm(bench, Arm(layers="full", learning_rate=rate, seed=seed), steps).arm
                score = np.mean(bench.evaluate("select", run.config.search.num_select, seed=0, arm=arm).rewards_I)
                return float(score), float(
                    np.mean(np.array(bench.evaluate("eval", num_eval, seed=0, arm=arm).rewards_I) - base_I)
                )

            first = {}
            for rate in RATES:
                with contextlib.suppress(TrainingError):
                    first[rate] = after(rate, seeds[0])
            best = max(first, key=lambda rate: first[rate][0])
            values = [first[best][1]] + [after(best, seed)[1] for seed in seeds[1:]]
    return {"gains": values, "learning_rate": best, "rank": lora.RANK, "rates": RATES}
