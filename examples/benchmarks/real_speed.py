"""Speed on a real pretrained model: generation against `generate`, a training step against its floor, pick by stages.

    python examples/benchmarks/real_speed.py FOLDER_OR_NAME       # SmolLM2-135M: 7 minutes on one core

Small sums with one worked example, 8 prompts with 8 completions of at most 4 tokens, in the dtype that a run would
compute in. All cases run by turns in one process with one thread, in CPU seconds, and the best of some rounds counts.
Plain `generate` samples the same batch in one call, with contiguous states for the output head. The floor of a training
step, from the end of sampling to the end of the optimizer's step, is one forward pass over the same sequences and
`torch.autograd.grad` for the layer's parameters, with the output head at the completions' tokens alone. The stages are
those of a whole `pick` of `math:sums`, whose share of the full run is printed in work and in seconds.
"""

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import autolayer
from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.run_folder import RunFolder
from autolayer.models.computing_dtype import computing_dtype, widen
from autolayer.models.layers import layer_parameters
from autolayer.models.loading import load_model
from autolayer.rollouts.engines.base import Completion
from autolayer.rollouts.engines.hf import TransformersEngine, contiguous_head
from autolayer.rollouts.prompts import encode_prompts
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks.base import SPLITS, Task
from autolayer.training.logprobs import ScoreBatch
from autolayer.training.train_arm import train_arm, train_rows
from autolayer.training.workbench import Workbench

PROMPTS, GROUP, NEW_TOKENS, STEPS = 8, 8, 4, 3


class TimedEngine(TransformersEngine):
    """The engine of every run, which also counts the CPU seconds that it takes."""

    cpu_seconds = 0.0

    def generate(self, *args: Any, **options: Any) -> list[Completion]:
        started = time.process_time()
        completions = super().generate(*args, **options)
        self.cpu_seconds += time.process_time() - started
        return completions


def sums() -> Task:
    """Sums such as '3 + 4 = 7\\n6 * 9 ='; any completion is as good as another for the clock."""
    generator = random.Random(0)

    def prompt() -> str:
        a, b, c, d = (generator.randint(1, 9) for _ in range(4))
        return f"{a} + {b} = {a + b}\n{c} * {d} ="

    texts = iter(sorted({prompt() for _ in range(2000)}))
    rows = {split: [{"prompt": next(texts)} for _ in range(64)] for split in SPLITS}
    return Task(
        name="sums", splits=rows, max_new_tokens=NEW_TOKENS,
        reward=lambda prompts, completion_ids, **_: [float(ids[0] % 2) for ids in completion_ids],
    )  # fmt: skip


def plain_generation(bench: Workbench, prompt_ids: list[list[int]]) -> Callable[[], float]:
    """Seconds per token of `generate` with sampling."""
    model, pad = bench.model, bench.engine.pad_token_id
    width = max(map(len, prompt_ids))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompt_ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompt_ids])
    options: Any = dict(attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, pad_token_id=pad)

    def once() -> float:
        started = time.process_time()
        with torch.no_grad(), contiguous_head(model):
            output: Any = model.generate(ids, eos_token_id=bench.engine.eos_token_ids, **options)  # pyright: ignore
        seconds = time.process_time() - started
        return seconds / int((output[:, width:] != pad).sum())

    return once


def our_generation(bench: Workbench, prompt_ids: list[list[int]]) -> Callable[[], float]:
    """Seconds per token of the engine that every run samples with."""

    def once() -> float:
        started = time.process_time()
        completions = bench.engine.generate(prompt_ids, [request_seed("speed", i) for i in range(len(prompt_ids))])
        seconds = time.process_time() - started
        return seconds / sum(token != bench.engine.pad_token_id for ids in completions for token in ids)

    return once


def floor(bench: Workbench, rollouts: Rollouts, layer: int) -> Callable[[], float]:
    """Seconds of a forward pass and the gradient of one layer, nothing else."""
    model: Any = bench.model
    parameters = list(layer_parameters(model, (layer,)).values())

    def once() -> float:
        for parameter in parameters:
            parameter.requires_grad_(True)
        started = time.process_time()
        batch = ScoreBatch.of(rollouts, 0, model.device)
        states = model.get_decoder()(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        mask = batch.completion_mask[:, 1:].bool()
        logits = model.get_output_embeddings()(states.last_hidden_state[:, :-1][mask]).float()
        chosen = logits.log_softmax(-1).gather(1, batch.input_ids[:, 1:][mask][:, None])
        torch.autograd.grad((chosen * torch.linspace(-1, 1, len(chosen))[:, None]).mean(), parameters)
        seconds = time.process_time() - started
        for parameter in parameters:
            parameter.requires_grad_(False)
        return seconds

    return once


def our_step(bench: Workbench, engine: TimedEngine, layer: int) -> Callable[[], float]:
    """Seconds of a training step without its sampling; the first step, which also sets TRL up, is left out."""

    def once() -> float:
        marks: list[tuple[float, float]] = []
        train_arm(
            bench, Arm(layers=(layer,), learning_rate=1e-6, seed=0), STEPS + 1,
            on_step=lambda _: marks.append((time.process_time(), engine.cpu_seconds)),
        )  # fmt: skip
        return min(now - then - (sampled - before) for (then, before), (now, sampled) in itertools.pairwise(marks))

    return once


def stages(model: str, steps: int, budget: float) -> Table:
    """Wall-clock seconds of each stage of a pick, and as shares of the full run of its layer."""
    with tempfile.TemporaryDirectory() as scratch:
        result = autolayer.pick(
            model=model, task="math:sums", steps=steps, prompts_per_step=PROMPTS, group_size=GROUP, budget=budget,
            num_eval=64, out=scratch,
        )  # fmt: skip
    assert result.cost_share_of_full_run is not None
    seconds = {name: cost.seconds for name, cost in result.cost.items() if name != "train"}
    seconds["finding"] = sum(seconds.values())
    calibrate = result.cost["calibrate"]
    assert calibrate.seconds_share is not None
    full = calibrate.seconds / calibrate.seconds_share
    title = f"pick of {steps} steps, budget {budget:g}: a full run takes {full:.0f} s"
    table = Table(box=MARKDOWN, title=f"{title}; finding is {result.cost_share_of_full_run:.3f} of its work")
    for head in ("stage", "seconds", "share of the full run's"):
        table.add_column(head)
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.1f}", f"{taken / full:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder, or a Hugging Face name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["auto", "float32", "checkpoint"], default="auto")
    parser.add_argument("--steps", type=int, default=32, help="steps of the pick; 0 leaves it out")
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--layers", type=int, nargs="+", help="layers to train (default: first, middle, last)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(options.model, "cpu")
    widen(loaded, computing_dtype(loaded.model, torch.device("cpu"), options.dtype))
    layers = options.layers or [0, loaded.num_layers // 2, loaded.num_layers - 1]
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(model=options.model, prompts_per_step=PROMPTS, group_size=GROUP, steps=STEPS + 1)
        bench = Workbench(loaded, sums(), config, RunFolder(scratch), make_engine=TimedEngine)
        rows = train_rows(bench, 0, 1, 1)
        encoded = encode_prompts(bench.tokenizer, rows, {})
        prompt_ids = [ids for ids in encoded for _ in range(GROUP)]
        engine = bench.engine
        assert isinstance(engine, TimedEngine)
        rollouts = bench.sample(rows, [request_seed("speed", i) for i in range(PROMPTS * GROUP)], GROUP)
        cases = {"generation, ms per token": (plain_generation(bench, prompt_ids), our_generation(bench, prompt_ids))}
        for layer in layers:
            cases[f"training step, layer {layer}, s"] = floor(bench, rollouts, layer), our_step(bench, engine, layer)
        best = {name: [float("inf")] * 2 for name in cases}
        for _ in range(options.rounds):
            for name, pair in cases.items():
                best[name] = [min(known, once()) for known, once in zip(best[name], pair, strict=True)]
    table = Table(box=MARKDOWN, title=f"{loaded.num_layers} layers, {loaded.model.dtype}, one thread, best of "
                  f"{options.rounds}, {rollouts.num_tokens / len(rollouts.rewards):.1f} tokens a sequence")  # fmt: skip
    for head in ("", "floor", "autolayer", "ratio"):
        table.add_column(head)
    for name, (least, own) in best.items():
        scale = 1000 if "ms" in name else 1
        table.add_row(name, f"{least * scale:.3f}", f"{own * scale:.3f}", f"{own / least:.2f}")
    console = Console(width=120)
    console.print(table)
    if options.steps:
        console.print(stages(options.model, options.steps, options.budget))


if __name__ == "__main__":
    main()
