"""The update phase of a training step, against what is possible and against TRL's stock trainer.

    python examples/benchmarks/update.py                       # CPU: 5 minutes
    python examples/benchmarks/update.py --layers 36 --width 4096 --device cuda    # Qwen3-8B's shape, random weights

From the moment the completions are there until the optimizer has stepped, on one batch of given completions, by turns
in one process: our trainer on the middle layer; a bare forward pass with `torch.autograd.grad` for that layer's
parameters on the same batch, which is the floor; TRL's GRPOTrainer as it comes (it recomputes activations), for all
parameters and with LoRA on every linear map. The ratio is the median over rounds of time over the floor's in the same
round. Peak memory is that of one such phase alone in a process, beyond what was there before: gradients, optimizer
states, activations, and what passes work with.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import config, high_water, reset, tokenizer_of
from peft import LoraConfig
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PrinterCallback

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.run_folder import RunFolder
from autolayer.models.layers import layer_parameters
from autolayer.models.loading import LoadedModel
from autolayer.rollouts.rollouts import Rollouts
from autolayer.tasks.base import SPLITS, Task
from autolayer.training.grpo_trainer import EachStep
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring
from autolayer.training.train_arm import train_arm
from autolayer.training.trainer_side_effects import quiet_trainer
from autolayer.training.workbench import Workbench

PROMPT, GROUP, PROMPTS = 16, 8, 1


class Clock:
    """Seconds from the completions to the end of the step, and the most memory that it took beyond what was there."""

    peak = 0
    """Bytes, of the last step of the process."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0
        self.held = 0

    def begin(self, *_: Any) -> None:
        _wait()
        self.held = _start_of_peak()
        self.began = time.perf_counter()

    def end(self) -> None:
        _wait()
        self.seconds = time.perf_counter() - self.began
        Clock.peak = _peak() - self.held


def _start_of_peak() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        reset()
    return _peak()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else high_water()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def task_of(completion: int) -> Task:
    rows = {
        name: [{"prompt": " ".join([f"w{10 * number + i + 2}"] * PROMPT)} for i in range(4)]
        for number, name in enumerate(SPLITS)
    }
    return Task(
        name="update", splits=rows, max_new_tokens=completion,
        reward=lambda prompts, completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids],
    )  # fmt: skip


def given(tokenizer: Any, task: Task, vocabulary: int) -> Rollouts:
    """Random completions of full length: what is trained on does not matter to the clock."""
    generator = torch.Generator().manual_seed(0)
    prompt = tokenizer(task.splits["train"][0]["prompt"])["input_ids"]
    count = GROUP * PROMPTS
    ids = torch.randint(2, vocabulary, (count, task.max_new_tokens), generator=generator).tolist()
    rewards = [float(i % 3) for i in range(count)]
    return Rollouts.of_one_turn([prompt] * count, ids, [""] * count, rewards, [False] * count, GROUP)


def floor(model: Any, rollouts: Rollouts, layer: int) -> Callable[[], float]:
    """A forward pass and the gradient of one layer, nothing else."""

    def once() -> float:
        batch = ScoreBatch.of(rollouts, 0, model.device)
        parameters = list(layer_parameters(model, (layer,)).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        clock = Clock()
        with scoring(model, 1.0):
            clock.begin()
            advantages = torch.linspace(-1, 1, len(batch.input_ids), device=model.device)[:, None]
            torch.autograd.grad(-(log_probs(model, batch) * advantages).mean(), parameters)
            clock.end()
        for parameter in parameters:
            parameter.requires_grad_(False)
        return clock.seconds

    return once


def ours(
    model: Any,
    tokenizer: Any,
    task: Task,
    rollouts: Rollouts,
    layer: int,
    scratch: Path,
    *,
    recompute: bool = False,
    beta: float = 0.0,
    shares: bool = True,
) -> Callable[[], float]:
    """The trainer that trains every arm; with a reference that runs the layers below with the policy, or by itself."""
    loaded = LoadedModel(
        model=model, tokenizer=tokenizer, name="random", num_layers=model.config.num_hidden_layers,
        device=model.device,
    )  # fmt: skip
    config = Config(
        model="random", prompts_per_step=PROMPTS, group_size=GROUP, beta=beta, activation_checkpointing=recompute
    )
    rounds = iter(range(1_000_000))

    def once() -> float:
        number = next(rounds)
        bench = Workbench(loaded, task, config, RunFolder(scratch / f"run-{number}"))
        bench.scorer.starts_midway = bench.scorer.starts_midway and shares
        clock = Clock()
        from autolayer.training import grpo_trainer as module

        original = module.sample_on_all_ranks

        def fixed(*_: Any) -> Rollouts:
            return rollouts

        original_init = module.LayerGRPOTrainer.__init__

        def init(self: Any, **options: Any) -> None:
            keep = options["on_rollouts"]

            def on_rollouts(found: Rollouts) -> None:
                keep(found)
                clock.begin()

            original_init(self, **{**options, "on_rollouts": on_rollouts})
            self.add_callback(EachStep(clock.end))

        module.sample_on_all_ranks, module.LayerGRPOTrainer.__init__ = fixed, init  # pyright: ignore
        try:
            train_arm(bench, Arm(layers=(layer,), learning_rate=1e-6, seed=0), 1)
        finally:
            module.sample_on_all_ranks, module.LayerGRPOTrainer.__init__ = original, original_init  # pyright: ignore
        return clock.seconds

    return once


def stock(
    make_model: Callable[[], Any], tokenizer: Any, task: Task, rollouts: Rollouts, scratch: Path, lora: bool
) -> Callable[[], float]:
    """TRL's GRPOTrainer with its own defaults."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    def once() -> float:
        clock, model = Clock(), make_model()

        def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
            clock.begin()
            return {"prompt_ids": rollouts.prompt_ids, "completion_ids": rollouts.completion_ids, "logprobs": None}

        with quiet_trainer():
            trainer = GRPOTrainer(
                model=model,
                reward_funcs=lambda completions, **_: list(rollouts.rewards),  # pyright: ignore
                args=GRPOConfig(
                    output_dir=str(scratch), max_steps=1, per_device_train_batch_size=GROUP * PROMPTS,
                    num_generations=GROUP, max_completion_length=task.max_new_tokens, loss_type="grpo",
                    use_cpu=model.device.type == "cpu", bf16=False, save_strategy="no", report_to=[],
                    disable_tqdm=True, shuffle_dataset=False,
                ),
                train_dataset=Dataset.from_list(list(task.splits["train"][:PROMPTS])),
                processing_class=tokenizer,
                rollout_func=rollout,
                peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if lora else None,
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(EachStep(clock.end))
            trainer.train()
        return clock.seconds

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256, help="of a sequence, prompt included")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = config(layers=options.layers, width=options.width, positions=options.tokens)

    def make_model() -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(shape).to(options.device).eval()

    tokenizer, task = tokenizer_of(shape.vocab_size), task_of(options.tokens - PROMPT)
    rollouts, middle = given(tokenizer, task, shape.vocab_size), options.layers // 2
    model = make_model().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cases = {
            "floor: forward and autograd.grad": floor(model, rollouts, middle),
            f"autolayer, layer {middle}": ours(model, tokenizer, task, rollouts, middle, scratch),
            f"autolayer, layer {middle}, --activation-checkpointing": ours(
                model, tokenizer, task, rollouts, middle, scratch / "again", recompute=True
            ),
            f"autolayer, layer {middle}, --beta": ours(
                model, tokenizer, task, rollouts, middle, scratch / "reference", beta=0.02
            ),
            "the same, nothing shared with the reference": ours(
                model, tokenizer, task, rollouts, middle, scratch / "apart", beta=0.02, shares=False
            ),
            "TRL, all parameters": stock(make_model, tokenizer, task, rollouts, scratch, lora=False),
            "TRL, LoRA on all layers": stock(make_model, tokenizer, task, rollouts, scratch, lora=True),
        }
        if options.case is not None:  # alone in its process: what another has freed would hide its peak
            list(cases.values())[options.case]()
            return print(Clock.peak)
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(options.rounds + 1):
            for name, once in cases.items():
                found = once()
                if number:  # the first round warms up
                    seconds[name].append(found)
    first = next(iter(seconds.values()))
    table = Table(box=MARKDOWN, title=f"{options.layers} layers of width {options.width}, {GROUP * PROMPTS} sequences "
                  f"of {options.tokens} tokens, {options.device}")  # fmt: skip
    for head in ("update phase", "median seconds", "over the floor", "peak MB beyond the model"):
        table.add_column(head)
    for case, (name, values) in enumerate(seconds.items()):
        ratio = statistics.median(value / base for value, base in zip(values, first, strict=True))
        alone = [sys.executable, *sys.argv, "--case", str(case)]
        peak = int(subprocess.run(alone, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        table.add_row(name, f"{statistics.median(values):.3f}", f"{ratio:.2f}", f"{peak / 1e6:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
