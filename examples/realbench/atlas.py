"""Prints one table of every known contribution: RealBench, LayerBench and the published curves; draws their figure.

    python examples/realbench/atlas.py atlas.svg      # seconds on any machine

Expected: 57 rows. The depth prior loses .34 at most on RealBench's curves, and up to .73 on LayerBench's bases, which
were made to differ.
Left out on purpose: environments whose full-parameter RL gained nothing, since no layer has a share of that.
"""

import sys
from pathlib import Path

import rich
from real_contributions import contributions, final_rewards
from real_environments import ENVIRONMENTS, RESULTS, Environment, load, rewards

from autolayer.comparison.atlas import make_atlas
from autolayer.comparison.atlas_report import AtlasReport, write_figure
from autolayer.comparison.curves import Curve

LAYERBENCH = Path(__file__).parents[1] / "layerbench" / "results"


def real_curve(environment: Environment) -> Curve | None:
    """Returns what RealBench measured in an environment, or None if it has no contributions."""
    found = load(environment)
    arms = final_rewards(found)
    if "full" not in arms or arms["full"].mean() <= rewards(found["base"]["eval"]).mean():
        return None
    values = contributions(found)
    return Curve(
        source=f"RealBench, {RESULTS.name}/{environment.name}.json",
        setting=f"{environment.model}, {environment.task}, {environment.algorithm}",
        num_layers=environment.num_layers,
        values={layer: float(value) for layer, (value, _, _) in values.items()},
        is_measured=True,
        band={layer: (float(low), float(high)) for layer, (_, low, high) in values.items()},
        notes=("one training seed for most arms; the interval has evaluation noise only",),
    )


def main() -> None:
    real = [curve for curve in map(real_curve, ENVIRONMENTS.values()) if curve is not None]
    found = make_atlas([*real, "published:all", LAYERBENCH, LAYERBENCH / "stable"])
    rich.print(AtlasReport(found))
    for name in sys.argv[1:]:
        write_figure(found, Path(name))


if __name__ == "__main__":
    main()
