"""Prints what short bursts of RL tell of a whole run: correlations over layers, from the learning curves in results/.

python examples/realbench/bursts.py                              # seconds
"""

import numpy as np
from real_environments import ENVIRONMENTS, load, rewards

from autolayer.comparison.metrics import pearson

TRAINED = {"1 and 2 steps": slice(1, 3), "3 and 4 steps": slice(3, 5)}
"""Training rewards, which a step takes before its update."""
SELECTED = ("8", "16")  # steps after which the `select` items were read


def main() -> None:
    for name, environment in ENVIRONMENTS.items():
        arms = load(environment)["arms"]
        keys = [f"layer-{layer}_rate-{environment.rates[0]:g}_seed-0" for layer in range(environment.num_layers)]
        records = [arms[key] for key in keys if key in arms]
        final_L = [float(rewards(record["eval"]).mean()) for record in records]
        early = {label: [float(np.mean(r["train"][part])) for r in records] for label, part in TRAINED.items()}
        early |= {f"{step} steps": [float(rewards(r["select"][step]).mean()) for r in records] for step in SELECTED}
        correlations = ", ".join(f"{label} {pearson(early_L, final_L) or 0:.2f}" for label, early_L in early.items())
        print(f"{name}, {len(records)} layers: {correlations}")


if __name__ == "__main__":
    main()
