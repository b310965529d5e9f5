"""Computes what `pick` takes on 8 to 512 GPUs, by the planner: hours, what bounds them, what breaks first.

    python examples/benchmarks/scale.py                                   # seconds; examples/scale.md discusses it
    python examples/benchmarks/scale.py --decode 3500 --busy 0.4 --latency 0.010   # your own unit costs of the 8B model

Amounts of work come from the planner. What a unit costs was NOT measured here, where there is no GPU: the defaults are
round numbers for an H100 that you should replace by your own. One full run is 400 steps of 64 prompts x 8 completions
of 900 tokens after prompts of 100.
"""

import argparse
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from planner import SHAPES, stages, units_of
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from autolayer.core.budget import UnitCosts, default_budget, select_items
from autolayer.core.config import Config
from autolayer.core.costs import Cost
from autolayer.models.layers import find_layers, layer_parameters
from autolayer.models.memory_estimate import MicroBatchShape, gradient_bytes, training_bytes
from autolayer.pipeline.memory_fit import USABLE
from autolayer.search.ladder import plan_ladder
from autolayer.search.records import Candidate, RaceConfig

GPUS = (8, 64, 512)
STEPS, PROMPTS, GROUP, COMPLETION = 400, 64, 8, 900
DEVICE = 80e9
"""Bytes of memory of an H100."""
PEAK = 989e12
"""bf16 operations a second of an H100 SXM, by its data sheet."""


@dataclass(frozen=True)
class Model:
    """Size and speed of a model, which the planner does not know."""

    name: str
    per_layer: float
    """Parameters of one block that a token goes through."""
    copy: int
    """GPUs that one copy takes, with room for its cache."""
    decode: float
    """Tokens a second and GPU, in large batches. Assumed."""
    latency: float
    """Seconds a token in a small batch. Assumed."""

    @cached_property
    def units(self) -> UnitCosts:
        return units_of(self.name)


def models(decode: float, latency: float) -> tuple[Model, ...]:
    """Returns the models; their time grows with the parameters that a token goes through, and with the depth."""
    return (
        Model("Qwen3-8B", 0.193e9, 1, decode, latency),
        Model("Qwen3-32B", 0.487e9, 2, decode / 4, latency * 64 / 36),
        Model("Qwen3-235B-A22B", 0.222e9, 8, decode / 2.7, latency * 94 / 36),
    )


def hours(model: Model, cost: Cost, gpus: int, busy: float, steps: float) -> float:
    """Returns the hours of work that all GPUs share; a step ends with its longest completion."""
    generation = cost.generated_tokens / (gpus * model.decode)
    read = cost.layer_tokens - model.units.costs.generate(0, cost.generated_tokens).layer_tokens
    passes = read * 2 * model.per_layer / (gpus * PEAK * busy)
    return (max(generation, steps * COMPLETION * model.latency) + passes) / 3600


def race_hours(model: Model, units: UnitCosts, config: Config, left: Cost, gpus: int, busy: float) -> tuple[float, str]:
    """Returns the hours and the shape of a race whose arms each use the GPUs of one copy of the model."""
    depth = units.costs.num_layers
    race = RaceConfig(
        seed=0, num_layers=depth, total_steps=STEPS, budget=left, step_cost=lambda layers: units.step(layers) * PROMPTS,
        eval_cost=units.generate_one * select_items(config),
    )  # fmt: skip
    ladder = plan_ladder(
        race, [Candidate(layers=(i,), predicted=0.5, predicted_sd=0.2, learning_rate=1e-5) for i in range(depth)]
    )
    workers, total, before = max(1, gpus // model.copy), 0.0, 0
    for rung in ladder.rungs:
        step = units.step((depth // 2,)) * (PROMPTS * (rung.step - before))
        arm = hours(model, step, min(gpus, model.copy), busy, rung.step - before)
        total += arm * math.ceil(rung.num_layers / workers)
        before = rung.step
    shape = " ".join(f"{rung.num_layers}@{rung.step}" for rung in ladder.rungs)
    return total, shape


def host_bytes(model: Model, config: Config) -> float:
    """Returns the bytes of the gradients of the shared batch, for every block."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(SHAPES[model.name], dtype=torch.bfloat16)
    return gradient_bytes(whole, tuple(range(len(find_layers(whole)))), config.probe.num_folds)


def least_devices(model: Model) -> str:
    """Returns how many GPUs of 80 GB hold the policy in shards while its lowest layer is trained, and what they hold.

    Activations are recomputed and passes as small as they become; completions come from servers elsewhere.
    """
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(SHAPES[model.name], dtype=torch.bfloat16)
    trained = sum(parameter.numel() for parameter in layer_parameters(whole, (0,)).values())
    for shards in (2**power for power in range(12)):
        passing = MicroBatchShape(
            width=1000, tokens=1000, activation_checkpointing=True, batch=PROMPTS * GROUP, shards=shards
        )
        held = sum(training_bytes(whole, (0,), passing, num_trained=trained).values())
        if held <= USABLE * DEVICE:
            where = f"{shards} GPU{'s --shard' if shards > 1 else ''}"
            weights = sum(parameter.nbytes for parameter in whole.parameters()) / 1e9
            own = (16 + (2 if shards > 1 else 0)) * trained / 1e9
            return (
                f"{where}, {held / 1e9:.0f} of 80 GB, {own:.0f} of them the layer's own; host, loading: {weights:.0f}"
            )
    raise ValueError(f"{model.name} fits nowhere")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", type=float, default=4000.0, help="tokens a second and GPU of the 8B model")
    parser.add_argument("--latency", type=float, default=0.012, help="seconds a token in a small batch, 8B")
    parser.add_argument("--busy", type=float, default=0.35, help="share of the peak in forward and backward passes")
    parser.add_argument("--budget", type=float, help="default: that of `pick`")
    options = parser.parse_args()
    table = Table(box=MARKDOWN)
    for name in ("model", "GPUs", "full run, h", "calibrate", "probe, one copy", "probe, if shared", "search",
                 "rungs, arms@step", "decode latency's part", "host memory, GB"):  # fmt: skip
        table.add_column(name)
    for model in models(options.decode, options.latency):
        units = model.units
        config = Config(
            model=model.name, steps=STEPS, prompts_per_step=PROMPTS, budget=options.budget or default_budget(STEPS)
        )
        found, full = stages(config, units)
        for gpus in GPUS:
            run = hours(model, full, gpus, options.busy, STEPS)
            bound = STEPS * COMPLETION * model.latency / 3600
            search, shape = race_hours(model, units, config, found["search"], gpus, options.busy)
            table.add_row(
                model.name, str(gpus), f"{run:.1f}", f"{hours(model, found['calibrate'], gpus, options.busy, 1):.2f}",
                f"{hours(model, found['probe'], model.copy, options.busy, 1):.1f}",
                f"{hours(model, found['probe'], gpus, options.busy, 1):.2f}", f"{search:.1f}", shape,
                f"{bound / run:.0%}", f"{host_bytes(model, config) / 1e9:.0f}",
            )  # fmt: skip
    Console(width=170).print(table)
    for model in models(options.decode, options.latency):
        print(f"{model.name}: the policy trains on {least_devices(model)} GB")


if __name__ == "__main__":
    main()
