"""Asks the tool about RealBench's environments: what `pick` predicts before any short run, or chooses after the search.

python examples/realbench/ask.py smollm2.sums.grpo                    # a minute a seed on two cores
python examples/realbench/ask.py smollm2.sums.grpo --budget 1         # with more probes
python examples/realbench/ask.py smollm2.sums.grpo --steps 400        # what a run of usual length pays for
python examples/realbench/ask.py smollm2.sums.grpo --budget 1 --until search     # as long as a full run
"""

import argparse
import tempfile
from pathlib import Path

import torch
from real_environments import ENVIRONMENTS, keep

import autolayer
from autolayer.core.config import Config

SEEDS = (10, 11, 12)
"""Seeds of the picks. None that an arm was trained with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", choices=ENVIRONMENTS, metavar="ENVIRONMENT")
    parser.add_argument("--model", help="folder of the model; default: the name that the environment has for it")
    parser.add_argument("--budget", type=float, help="of each pick; default: that of `autolayer pick`")
    parser.add_argument("--steps", type=int, help="of the run that is asked about; default: as many as were measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--until", choices=("probe", "search"), default="probe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for environment in (ENVIRONMENTS[name] for name in options.environments):
        picks = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                settings = environment.options(options.model, seed)
                settings["steps"] = options.steps or environment.steps
                config = Config(**settings, budget=options.budget, out=str(Path(scratch) / "run"))
                result = autolayer.pick(config, until=options.until)
            rows = sorted(result.ranking or (), key=lambda row: row.layer)
            picks.append({
                "seed": seed,
                "predicted": [row.predicted for row in rows],
                "low": [row.predicted_low for row in rows],
                "high": [row.predicted_high for row in rows],
                "probes": result.probes,
                "chosen": result.best_layers,
                "cost_share": result.cost_share_of_full_run,
                "seconds": sum(cost.seconds for cost in result.cost.values()),
            })  # fmt: skip
            first = max(rows, key=lambda row: row.predicted or 0).layer
            print(f"{environment.name} seed {seed}: first {first}, chosen {result.best_layers}", flush=True)
        name = "picks" if options.until == "probe" else "searches"
        name += f" for {options.steps} steps" if options.steps else ""
        keep(environment, {name if options.budget is None else f"{name} at {options.budget:g}": picks})


if __name__ == "__main__":
    main()
