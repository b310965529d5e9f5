"""Peak memory of one training step, predicted from shapes and measured, with what it consists of.

    python examples/benchmarks/memory.py          # Linux, CPU: 2 minutes

A random model of about 100M parameters, 12 layers of width 768; one GRPO step of 32 completions of 128 tokens by the
trainer that trains every arm, each case in a process of its own. Measured is the highest resident memory during the
step, less what was there before. Expect the prediction within 20%.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.layer_set import Layers
from autolayer.core.run_folder import RunFolder
from autolayer.models.layers import layer_parameters
from autolayer.models.loading import LoadedModel
from autolayer.models.memory_estimate import MicroBatchShape, training_bytes
from autolayer.tasks.base import SPLITS, Task
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

LAYERS, WIDTH, VOCABULARY = 12, 768, 16384
PROMPT, COMPLETION, GROUP = 16, 112, 8
CASES: dict[str, tuple[Layers, bool]] = {
    "layer 11": ((11,), False),
    "layer 6": ((6,), False),
    "layer 6, recomputed": ((6,), True),
    "layer 0": ((0,), False),
    "layer 0, recomputed": ((0,), True),
    "full": ("full", False),
}


def config(layers: int = LAYERS, width: int = WIDTH, positions: int = 512) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64 // 2, head_dim=64,
        max_position_embeddings=positions, dtype="float32",
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def high_water() -> int:
    """Highest resident memory of this process since `reset`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: w2, w3, ..."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def measure(layers: Layers, recompute: bool) -> int:
    """Bytes that one training step needs beyond the model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(config()).eval()
    fast = tokenizer_of(VOCABULARY)
    rows = {
        name: [{"prompt": " ".join([f"w{10 * number + i + 2}"] * PROMPT)} for i in range(4)]
        for number, name in enumerate(SPLITS)
    }
    task = Task(
        name="memory", splits=rows, max_new_tokens=COMPLETION,
        reward=lambda prompts, completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids],
    )  # fmt: skip
    loaded = LoadedModel(model=model, tokenizer=fast, name="random", num_layers=LAYERS, device=torch.device("cpu"))
    settings = Config(model="random", prompts_per_step=4, group_size=GROUP, activation_checkpointing=recompute)
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(loaded, task, settings, RunFolder(folder))
        arm = Arm(layers=layers, learning_rate=1e-5, seed=0)
        train_arm(bench, Arm(layers=(LAYERS - 1,), learning_rate=1e-5, seed=1), 1)  # what libraries take once
        bench.sample(rows["probe"], list(range(4)))
        reset()
        before = high_water()
        train_arm(bench, arm, 1)
        return high_water() - before


def predict(layers: Layers, recompute: bool) -> dict[str, int]:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config())
    num_trained = sum(p.numel() for p in layer_parameters(model, layers).values())
    passing = MicroBatchShape(
        width=PROMPT + COMPLETION, tokens=32768, activation_checkpointing=recompute, batch=4 * GROUP, device="cpu"
    )
    parts = training_bytes(model, layers, passing, num_trained=num_trained)
    return {name: size for name, size in parts.items() if name != "weights"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return print(json.dumps(measure(*CASES[options.case])))
    table = Table(box=MARKDOWN)
    for head in ("MB", "measured", "predicted", "ratio", "of which"):
        table.add_column(head)
    for name, case in CASES.items():
        done = subprocess.run([sys.executable, __file__, "--case", name], capture_output=True, text=True, check=True)
        found, parts = json.loads(done.stdout.splitlines()[-1]), predict(*case)
        of_which = ", ".join(f"{part} {size / 1e6:.0f}" for part, size in parts.items())
        total = sum(parts.values())
        table.add_row(name, f"{found / 1e6:.0f}", f"{total / 1e6:.0f}", f"{total / found:.2f}", of_which)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
