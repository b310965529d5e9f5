"""Lists the environments that have a hump off the centre: a layer clearly better than first, middle and last.

    python examples/layerbench/humps.py    # seconds: nothing is run

The layer is chosen on all training seeds but one and compared on that one, and so in turn, so that luck which made it
the best is not counted. Differences are in contribution; the bound is that of a two-sided 95% interval. Its error has
the seeds' and the sampling noise of every single run in it (residuals from arms and seeds, pooled), and the finite
number of items.
"""

import argparse

import numpy as np
from environments import ENVIRONMENTS
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from run import load
from scipy import stats

from autolayer.reporting.contribution import Contribution

WANTED = 0.15
ITEM_SD = 0.5
"""Standard deviation of one item's paired difference between two trained layers, in reward. Over the seeds, its mean is
.25 to .38 in the measured environments and .52 for the two layers that differ most. It contains the sampling noise,
which is therefore counted twice."""


def humps(measured: Contribution) -> tuple[list[int], dict[str, tuple[float, float]]]:
    """Returns the chosen layers, and difference and lower bound against each of the three positions."""
    layers, full = list(measured.layers), float(np.mean(measured.full.gains))
    gain_L_S = np.array([measured.layers[layer].gains for layer in layers])
    num_layers, num_seeds = gain_L_S.shape
    left_L_S = gain_L_S - gain_L_S.mean(1, keepdims=True) - gain_L_S.mean(0) + gain_L_S.mean()
    freedom = (num_layers - 1) * (num_seeds - 1)
    variance = 2 * float((left_L_S**2).sum()) / freedom / num_seeds + ITEM_SD**2 / measured.num_items
    margin = float(stats.t.ppf(0.975, freedom)) * variance**0.5 / full
    chosen = [int(np.delete(gain_L_S, seed, 1).mean(1).argmax()) for seed in range(num_seeds)]
    found = {}
    for name, wanted in (("first", 0), ("middle", measured.num_layers // 2), ("last", measured.num_layers - 1)):
        other = min(range(num_layers), key=lambda index: abs(layers[index] - wanted))
        ahead = np.mean([gain_L_S[best, seed] - gain_L_S[other, seed] for seed, best in enumerate(chosen)]) / full
        found[name] = (float(ahead), float(ahead) - margin)
    return [layers[index] for index in chosen], found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table, count = Table(title="Ahead of the first, middle and last layer: difference (lower bound)", box=MARKDOWN), 0
    for head in ("environment", "layers", "chosen", "first", "middle", "last", "hump"):
        table.add_column(head)
    for environment in ENVIRONMENTS.values():
        if environment.sealed or not (stored := load(environment)):
            continue
        measured = Contribution.from_dict(stored["contribution"])
        chosen, found = humps(measured)
        is_hump = all(ahead >= WANTED and low > 0 for ahead, low in found.values())
        count += is_hump
        table.add_row(
            environment.name, str(measured.num_layers), ", ".join(map(str, chosen)),
            *(f"{ahead:+.2f} ({low:+.2f})" for ahead, low in found.values()), "yes" if is_hump else "no",
        )  # fmt: skip
    Console(width=140).print(table)
    print(f"{count} humps")


if __name__ == "__main__":
    main()
