"""Measures how cost and memory of the probes grow with the number of layers and with the length of sequences.

    python examples/benchmarks/growth.py          # Linux, CPU: 6 minutes

Random models of width 128 with a vocabulary of 2048; 2 folds of 4 prompts x 4 completions. Each case runs in a process
of its own. Layer-tokens are counted by hooks, head included, not taken from the bill, whose ratio stands beside; memory
is the highest resident memory, less what was there before. A floor: one forward pass of the same sequences per layer
grows with layers^2; one pass over them with layers^1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from memory import high_water, reset, tokenizer_of
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3Config

from autolayer.core.config import Config
from autolayer.core.probe_plan import ProbePlan
from autolayer.core.run_folder import RunFolder
from autolayer.models.loading import LoadedModel
from autolayer.probes import PROBES
from autolayer.probes.context import ProbeContext
from autolayer.probes.shared_batch import make_fold
from autolayer.tasks.base import SPLITS, Task
from autolayer.training.workbench import Workbench

LAYERS, LENGTHS = (6, 12, 24, 48), (64, 128, 256, 512)
LENGTH, DEPTH = 128, 12
"""The fixed value in the cases that vary the other."""
PARTS = {"shared gradients": ("gradient_norm",), "gain per root KL, reach": ("trusted_gain",)}
PLAN = ProbePlan(fold_prompts=4, response_folds=1, response_prompts=4, cutoff_pairs=0)


def measure(layers: int, length: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen3Config(
        vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, dtype="float32", pad_token_id=0,
        eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    prompt = length // 8
    rows = {name: [{"prompt": " ".join([f"w{10 * number + i + 2}"] * prompt)} for i in range(8)]
            for number, name in enumerate(SPLITS)}  # fmt: skip
    task = Task(name="growth", splits=rows, max_new_tokens=length - prompt,
                reward=lambda prompts, completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids])  # fmt: skip
    loaded = LoadedModel(model=model, tokenizer=tokenizer_of(2048), name="random", num_layers=layers,
                         device=torch.device("cpu"))  # fmt: skip
    settings = Config(model="random", prompts_per_step=4, group_size=4)
    counted = [0.0]

    def count(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        counted[0] += output.shape[0] * output.shape[1]

    def count_head(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        states = output[0]  # the head's weights are used without calling it
        counted[0] += states.shape[0] * states.shape[1] * bench.costs.head_ratio

    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(loaded, task, settings, RunFolder(folder))
        folds = [bench.sample(rows["probe"][4 * i : 4 * i + 4], list(range(16 * i, 16 * i + 16)), 4) for i in (0, 1)]
        context = ProbeContext(bench=bench, layers=tuple(range(layers)), folds=[make_fold(bench, f) for f in folds],
                               plan=PLAN, seed=0)  # fmt: skip
        # A block that a pass does not begin below only hands its input on: what computes in it is counted.
        handles = [block.get_submodule("mlp").register_forward_hook(count) for block in bench.layers]
        handles.append(model.get_decoder().register_forward_hook(count_head))
        found = {}
        for part, probes in PARTS.items():
            counted[0], before, billed, started = 0.0, reset() or high_water(), bench.spent, time.perf_counter()
            for name in probes:
                assert PROBES[name].score(context) is not None
            found[part] = {
                "seconds": time.perf_counter() - started,
                "passes": counted[0],
                "billed": (bench.spent - billed).layer_tokens,
                "bytes": high_water() - before,
            }
        for handle in handles:
            handle.remove()
    return found


def exponent(sizes: tuple[int, ...], values: list[float]) -> str:
    """The slope of a straight line through the logarithms."""
    if min(values) <= 0:
        return "-"
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


def case(layers: int, length: int) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--case", str(layers), str(length)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return print(json.dumps(measure(*options.case)))
    for name, sizes, cases in (
        ("layers", LAYERS, [case(layers, LENGTH) for layers in LAYERS]),
        ("tokens of a sequence", LENGTHS, [case(DEPTH, length) for length in LENGTHS]),
    ):
        table = Table(box=MARKDOWN)
        for head in ("probe", "of", *map(str, sizes), f"exponent in {name}"):
            table.add_column(head)
        for part in PARTS:
            for kind, unit, scale in (("passes", "layer-tokens forward, M", 1e6), ("seconds", "seconds", 1),
                                      ("bytes", "MB above before", 1e6)):  # fmt: skip
                values = [found[part][kind] for found in cases]
                table.add_row(part, unit, *(f"{v / scale:.3g}" for v in values), exponent(sizes, values))
            if part != "shared gradients":  # whose bill has the backward pass in it
                ratios = [found[part]["billed"] / found[part]["passes"] for found in cases]
                table.add_row(part, "layer-tokens, billed / counted", *(f"{ratio:.2f}" for ratio in ratios), "")
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
