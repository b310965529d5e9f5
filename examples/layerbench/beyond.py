"""More than one layer, or less than one: what else the tool can train, against one layer and all parameters.

    python examples/layerbench/beyond.py run exit-llama.reading.grpo    # 8 minutes of one core each; builds bases first
    python examples/layerbench/beyond.py table                          # seconds, from results/

Every variant is one `pick` with the tool's own learning rates: the layer, or the set of layers, that it finds in the
seed's run. Same steps, same seeds. Finding may cost the default share of one run, but sets of layers have a whole run:
on less, runs as short as LayerBench's pay for no race, and single predictions would choose the set.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from environments import ENVIRONMENTS, Environment
from judge import mean
from rich.console import Console
from rich.table import Table
from run import SEEDS, build, check, keep, load
from table import markdown, number

import autolayer
from autolayer.core.config import Config
from autolayer.reporting.contribution import Contribution

VARIANTS: dict[str, dict[str, Any]] = {
    "top 3": {"top_k": 3, "budget": 1.0},
    "LoRA on the layer": {"adapter": "lora"},
}


def run(environment: Environment, work: Path) -> None:
    """Gains of each variant for each seed, kept in the environment's file."""
    build(environment, work)
    check(environment, work)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, options in VARIANTS.items():
        for seed in SEEDS:
            out = work / "beyond" / f"{environment.name}.{name.replace(' ', '-')}.{seed}"
            values = {**environment.options(work / "bases", seed), **options, "out": str(out)}
            result = autolayer.pick(Config(**values))
            assert result.gain is not None
            found.setdefault(name, []).append({
                "best_layers": result.best_layers, "gain": result.gain.value, "learning_rate": result.learning_rate,
                "raced": sum(1 for row in result.sets or () if row.rungs),
                "steps": max((row.measured_steps or 0 for row in result.sets or ()), default=0),
            })  # fmt: skip
            print(f"{environment.name}, {name}, seed {seed}: {result.best_layers} {result.gain.value:+.3f}", flush=True)
    keep(environment, beyond=found)


def table() -> Table:
    """Mean gains over seeds; full, one layer and LoRA on everything come from `run.py`."""
    names = ("full", "one layer", *VARIANTS, "LoRA on all layers")
    made = markdown(None, ("environment", "sets of three", "raced", "to step", *names))
    rows = []
    for environment in ENVIRONMENTS.values():
        found = load(environment) or {}
        if "beyond" not in found:
            continue
        single = [pick["gain"] for pick in found["picks"] if pick.get("gain") is not None]
        gains = {
            "full": Contribution.from_dict(found["contribution"]).full.value,
            "one layer": float(np.mean(single)),
            **{name: float(np.mean([run["gain"] for run in found["beyond"][name]])) for name in VARIANTS},
            "LoRA on all layers": float(np.mean(found["lora"]["gains"])),
        }
        rows.append(gains)
        threes = found["beyond"]["top 3"]
        sets = "; ".join(",".join(map(str, run["best_layers"])) for run in threes)
        raced, steps = ("; ".join(str(run[name]) for run in threes) for name in ("raced", "steps"))
        made.add_row(environment.name, sets, raced, steps, *(number(gains[name], 3) for name in names))
    if rows:
        made.add_row("mean", "", "", "", *(number(mean([row[name] for row in rows]), 3) for name in names))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["run", "table"])
    parser.add_argument("names", nargs="*", metavar="ENVIRONMENT")
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"))
    options = parser.parse_args()
    if options.step == "table":
        return Console(width=200).print(table())
    for name in options.names:
        run(ENVIRONMENTS[name], options.work)


if __name__ == "__main__":
    main()
