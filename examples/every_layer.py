"""Trains every layer alone, then all parameters: what `pick` saves you from, as a table.

    python examples/every_layer.py --model tiny --task math:arith --out runs/every-layer

About 8 minutes on one CPU core for `tiny`: nine full runs. Every layer runs at its starting rate, full-parameter RL at
the best of the rates given. One training seed: differences below about .03 between layers are noise.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import autolayer
from autolayer.models.loading import meta_model
from autolayer.reporting.results import PickResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="math:arith")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--out", type=Path, default=Path("runs/every-layer"))
    options = parser.parse_args()

    def run(name: str, layers: str, rate: float | None) -> PickResult:
        return autolayer.train_layer(
            model=options.model, task=options.task, layers=layers, learning_rate=rate, steps=options.steps,
            seed=options.seed, out=str(options.out / name),
        )  # fmt: skip

    num_layers = meta_model(options.model).config.get_text_config().num_hidden_layers
    results = {str(layer): run(f"layer-{layer}", str(layer), None) for layer in range(num_layers)}
    results |= {f"full, {rate:g}": run(f"full-{rate:g}", "full", rate) for rate in options.full_rates}
    full = max(r.gain.value for name, r in results.items() if name.startswith("full") and r.gain is not None)

    table = Table(title=f"{options.model} · {options.task}: gain of training one layer, {options.steps or 'all'} steps")
    for column in ("trained", "learning rate", "base", "trained score", "gain [95%]", "contribution"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        gain = result.gain
        assert gain is not None
        table.add_row(
            name, f"{result.learning_rate:.2e}", f"{result.base_score:.3f}", f"{result.trained_score:.3f}",
            f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]", f"{gain.value / full:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
