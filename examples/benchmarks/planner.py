"""Prints the planned cost of finding the layer at real sizes, and compares plans with the real cost of runs.

    python examples/benchmarks/planner.py                # all tables, CPU: 4 minutes
    python examples/benchmarks/planner.py --only sizes   # seconds

Sizes: shares of one full run of 400 steps x 64 prompts x 8 completions, 100-token prompts and 900-token completions;
by default 10% of it.
Against runs: planned with the lengths that calibration measured, `--budget 1` and 40 steps; layer-tokens, generated
tokens.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

import autolayer
from autolayer.core.budget import (
    UnitCosts,
    calibration_cost,
    calibration_prompts,
    default_budget,
    final_layers,
    finding_budget,
    full_run,
    pays_for_race,
)
from autolayer.core.config import Config
from autolayer.core.costs import Cost, CostModel, PassSize
from autolayer.core.probe_plan import plan_probes, probe_cost
from autolayer.models.layers import find_layers, head_ratio
from autolayer.pipeline.dry_run import plan_run

SHAPES: dict[str, Any] = {
    "Qwen3-8B": Qwen3Config(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                            num_key_value_heads=8, head_dim=128, vocab_size=151936),
    "Qwen3-32B": Qwen3Config(hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64,
                             num_key_value_heads=8, head_dim=128, vocab_size=151936),
    "Qwen3-235B-A22B": Qwen3MoeConfig(hidden_size=4096, intermediate_size=12288, num_hidden_layers=94,
                                      num_attention_heads=64, num_key_value_heads=4, num_experts=128,
                                      num_experts_per_tok=8, moe_intermediate_size=1536, vocab_size=151936),
}  # fmt: skip
PROMPT, COMPLETION = 100.0, 900.0
RUNS = (("tiny", "math:arith"), ("tiny", "code:expr"), ("tiny-qwen2", "math:arith"), ("tiny-qwen2", "agent:house"))


def units_of(name: str) -> UnitCosts:
    """Unit costs of a model that exists as shapes only."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name])
    costs = CostModel(num_layers=len(find_layers(model)), head_ratio=head_ratio(model))
    return UnitCosts(costs=costs, group_size=8, prompt_tokens=PROMPT, completion_tokens=COMPLETION)


def stages(config: Config, units: UnitCosts) -> tuple[dict[str, Cost], Cost]:
    """Returns the cost of each stage of finding, and of one full run."""
    candidates = tuple(range(units.costs.num_layers))
    budget, prompts = finding_budget(config, units, candidates), calibration_prompts(config)
    sizes = plan_probes(config, units, candidates, budget)
    found = {"calibrate": calibration_cost(config, units),
             "probe": probe_cost(config, units, candidates, sizes, sampled=prompts)}  # fmt: skip
    left = budget - sum(found.values(), Cost())
    found["search"] = left if pays_for_race(config, units, candidates, left) else Cost()
    return found, full_run(config, units, final_layers(config, candidates))


def sizes_table() -> Table:
    table = Table(box=MARKDOWN)
    for name in ("model", "budget", "of the full run's", "calibrate", "probe", "search", "together"):
        table.add_column(name)
    for name in SHAPES:
        units = units_of(name)
        for budget in (default_budget(400), 0.25):
            config = Config(model=name, steps=400, prompts_per_step=64, budget=budget)
            found, full = stages(config, units)
            for kind in ("generated_tokens", "layer_tokens"):
                shares = [getattr(cost, kind) / getattr(full, kind) for cost in found.values()]
                table.add_row(
                    name, f"{budget:.0%}", kind.replace("_", " "), *(f"{s:.2%}" for s in (*shares, sum(shares)))
                )
    return table


def runs_table() -> Table:
    table = Table(box=MARKDOWN)
    for name in ("run", "stage", "measured / planned: generated tokens", "layer-tokens", "time"):
        table.add_column(name)
    for model, task in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "run"
            config = Config(model=model, task=task, steps=40, prompts_per_step=8, budget=1.0, num_eval=16, out=str(out))
            result = autolayer.pick(config)
            planned = plan_run(config)
            assert result.best_layers is not None
            measured = {
                name: cost_in(out / f"{file}.json") for name, file in (("calibrate", "calibration"), ("probe", "probe"))
            }
            for name, cost in measured.items():
                add(table, f"{model}, {task}", name, cost, planned.stages[name], planned.seconds)
            # The plan's full run is that of the highest layer: what the trained one costs differs by its depth.
            last = max(out.glob("arms/**/step-000040.safetensors"), key=lambda path: path.stat().st_mtime)
            with safe_open(last, framework="pt") as file:
                trained = Cost(**json.loads(file.metadata()["cost"]))
            units = unit_costs(out, planned.num_layers, model)
            add(
                table,
                f"{model}, {task}",
                "train",
                trained,
                full_run(planned.config, units, tuple(result.best_layers)),
                planned.seconds,
            )
    return table


def unit_costs(out: Path, num_layers: int, model: str) -> UnitCosts:
    from autolayer.models.loading import meta_model

    found = json.loads((out / "calibration.json").read_text())
    return UnitCosts(
        costs=CostModel(num_layers=num_layers, head_ratio=head_ratio(meta_model(model))), group_size=8,
        prompt_tokens=found["mean_prompt_tokens"], completion_tokens=found["mean_completion_tokens"],
        prefill_tokens=found["mean_prefill_tokens"], group_pass=PassSize(**found["group_pass"]),
        few_pass=PassSize(**found["few_pass"]),
    )  # fmt: skip


def cost_in(path: Path) -> Cost:
    return Cost(**json.loads(path.read_text())["cost"])


def add(table: Table, run: str, stage: str, measured: Cost, planned: Cost, seconds: dict[str, float] | None) -> None:
    ratios = [
        f"{getattr(measured, kind) / getattr(planned, kind):.2f}" if getattr(planned, kind) else "-"
        for kind in ("generated_tokens", "layer_tokens")
    ]
    assert seconds is not None
    table.add_row(run, stage, *ratios, f"{measured.seconds / seconds[stage]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["sizes", "runs"])
    only = parser.parse_args().only
    torch.set_num_threads(1)
    console = Console(width=140)
    for name, table in {"sizes": sizes_table, "runs": runs_table}.items():
        if only in (None, name):
            console.print(table())


if __name__ == "__main__":
    main()
