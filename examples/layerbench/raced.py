"""Measures what the race adds to the prediction of the same run, by the measured contribution of their layers.

    python examples/layerbench/raced.py     # seconds: from results/, nothing is run

Positive: the race took a better layer than the prediction alone would have. Means over environments, with the standard
error over them; runs whose layers were all measured in the environment.
"""

import argparse
from collections import defaultdict

import numpy as np
from environments import ENVIRONMENTS
from run import BUDGETS, load

from autolayer.reporting.contribution import Contribution


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for budget in BUDGETS:
        gains: dict[str, list[float]] = defaultdict(list)
        for environment in ENVIRONMENTS.values():
            found = load(environment)
            if found is None or environment.sealed:
                continue
            layers = Contribution.from_dict(found["contribution"]).layers
            for pick in found.get("picks") or ():
                ranking, taken = pick["ranking"], pick["best_layers"]
                predicted = max(ranking, key=lambda row: row["predicted"])["layer"]
                if len(taken) != 1 or not {predicted, *taken} <= set(layers) or pick["budget"] != budget:
                    continue
                if any(row["measured"] is not None for row in ranking):
                    gains[environment.name].append(layers[taken[0]].value - layers[predicted].value)
        means = [float(np.mean(values)) for values in gains.values()]
        if not means:
            print(f"--budget {budget:g}: no run raced")
            continue
        error = float(np.std(means, ddof=1)) / len(means) ** 0.5
        runs = sum(map(len, gains.values()))
        print(f"--budget {budget:g}: {np.mean(means):+.3f} +- {error:.3f} over {len(means)} environments, {runs} runs")


if __name__ == "__main__":
    main()
