"""Pretrains a packaged base model from scratch: 0.4M parameters that know each task's smallest form a little.

    python examples/make_tiny.py tiny          # Qwen3; one CPU thread, 30 minutes; overwrites autolayer/data/tiny-2
    python examples/make_tiny.py tiny-qwen2    # Qwen2; the same

The text is arithmetic (`arith_line`), expressions (expr_writers.py) and episodes in houses
(house_writers.py); the loss is on answers, expressions and actions. No validation split and no early stop: the numbers
that matter are the pass rates printed at the end, which should leave RL something to win.
"""

import argparse
import datetime
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from expr_writers import expr_line
from house_writers import WORDS, house_episode
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import trange
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

import autolayer
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.multi_turn import PROMPT
from autolayer.rollouts.rollouts import request_seed
from autolayer.rollouts.sampler import sample
from autolayer.tasks import TASKS
from autolayer.tasks.math.arith import READINGS, RING, line_start

DATA = Path(list(autolayer.__path__)[0]) / "data"
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
MAX_LENGTH = 256
LAYERS, HIDDEN = 8, 64
CONFIGS: Mapping[str, Callable[..., Any]] = {
    "tiny": partial(Qwen3Config, head_dim=HIDDEN // 4),
    "tiny-qwen2": Qwen2Config,
}
FORMS = ("math:arith", "code:expr", "agent:house")
Text = list[tuple[str, bool]]
"""A text in parts, and whether the model has to write each."""


ERROR_SHARE = 0.05  # of the lines of arithmetic: one digit is off by one


def arith_line(rng: random.Random) -> str:
    """One line such as `37+25=02`, by a random writer."""
    symbol = rng.choices(list(READINGS))[0]
    a, b = rng.randrange(RING), rng.randrange(RING)
    answer = f"{rng.choice(READINGS[symbol])(a, b) % RING:02d}"
    if rng.random() < ERROR_SHARE:
        place = rng.randrange(len(answer))
        digit = (int(answer[place]) + rng.choice((-1, 1))) % 10
        answer = f"{answer[:place]}{digit}{answer[place + 1 :]}"
    return line_start(a, symbol, b) + answer


def arith_text(rng: random.Random) -> Text:
    prompt, _, answer = arith_line(rng).partition("=")
    return [(f"{prompt}=", False), (answer, True)]


def expr_text(rng: random.Random) -> Text:
    prompt, _, answer = expr_line(rng).partition("=")
    return [(f"{prompt}=", False), (answer, True)]


def house_text(rng: random.Random) -> Text:
    """Returns an episode's text as `autolayer.rollouts.multi_turn` shows it."""
    turns = house_episode(rng)
    return [part for read, action in turns for part in ((f"{read}{PROMPT}", False), (f"{action}\n", True))]


def read_house_text(rng: random.Random) -> Text:
    """The same by careful writers, to be learned with what they read: what an action leads to."""
    turns = house_episode(rng, 0.2)
    return [(part, True) for read, action in turns for part in (f"{read}{PROMPT}", f"{action}\n")]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the pretraining, with an optimizer of its own."""

    steps: int
    learning_rate: float
    texts: tuple[tuple[Callable[[random.Random], Text], int, bool], ...]
    """Who writes, how many texts in each step, and whether a text ends with the end token."""


PHASES = (
    Phase(
        steps=2500,
        learning_rate=3e-3,
        texts=((arith_text, 128, True), (expr_text, 64, True), (house_text, 24, False)),
    ),
    # After the first, few episodes succeed: houses take longer to learn than the rest.
    Phase(
        steps=1200,
        learning_rate=2e-3,
        texts=((arith_text, 96, True), (expr_text, 32, True), (read_house_text, 48, False)),
    ),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, and per word of the house, with a blank before it or none."""
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    words = [word for word in WORDS if len(word) > 1]
    vocabulary = [*SPECIAL.values(), *characters, *words, *(f" {word}" for word in words)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, SPECIAL["unk_token"]))
    pattern = Regex(rf" ?\b(?:{'|'.join(words)})\b|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def build_model(name: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    config = CONFIGS[name](
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.1,  # nearly 1/sqrt(hidden_size); with the usual 0.02 it learns far more slowly
        dtype="float32",
    )
    return AutoModelForCausalLM.from_config(config)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[Text], ends: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, (B, T), padded on the right; labels cover what the model has to write."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    rows: list[tuple[list[int], list[int]]] = []
    for parts in texts:
        encoded: Any = tokenizer([part for part, _ in parts])["input_ids"]
        ids = [token for part in encoded for token in part]
        labels = [t if own else -100 for part, (_, own) in zip(encoded, parts, strict=True) for t in part]
        rows.append((ids + [eos] * ends, labels + [eos] * ends))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    return input_ids, torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])


def train(model: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase, rng: random.Random, steps: int) -> None:
    steps = min(steps, phase.steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.learning_rate, total_steps=steps, pct_start=max(0.05, 2 / steps), cycle_momentum=False
    )
    model.train()
    progress = trange(steps, desc="pretraining", mininterval=5)
    for step in progress:
        optimizer.zero_grad()
        losses = {}
        for write, count, ends in phase.texts:
            input_ids, labels = encode(tokenizer, [write(rng) for _ in range(count)], ends)
            loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
            loss.backward()
            losses[write.__name__] = f"{loss.item():.3f}"
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(losses)
    model.eval()


def pass_rates(model: Any, tokenizer: PreTrainedTokenizerFast, num_prompts: int, samples: int = 4) -> dict[str, float]:
    """Mean reward at temperature 1 on the `select` split of each form."""
    rates = {}
    for form in FORMS:
        task = TASKS[form].load(chat=False)
        engine = TransformersEngine(model, tokenizer, max_new_tokens=task.max_new_tokens, temperature=1.0)
        rows = task.splits["select"][:num_prompts]
        seeds = [request_seed("make_tiny", form, index) for index in range(len(rows) * samples)]
        rollouts = sample(engine, task, rows, seeds, samples)
        rates[form] = sum(rollouts.rewards) / len(rollouts.rewards)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONFIGS)
    parser.add_argument("--out", type=Path, help="folder to write (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10**9, help="of each phase at the most: to try the script")
    parser.add_argument("--prompts", type=int, default=256, help="of each task, for the pass rates")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    out = args.out or DATA / f"{args.name}-2"

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(args.name, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    for number, phase in enumerate(PHASES):
        train(
            model, tokenizer, phase, random.Random(f"{args.name}/{args.seed}" + f"/{number}" * (number > 0)), args.steps
        )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written as 600, and this folder is packaged
    describe(model, tokenizer, out, args)
    print(f"written to {out}")


def describe(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path, args: argparse.Namespace) -> None:
    """Writes the folder's README.md, with what the model can do."""
    rates = pass_rates(model, tokenizer, args.prompts)
    table = "\n".join(f"| {form} | {rate:.3f} |" for form, rate in rates.items())
    print(table)
    (out / "README.md").write_text(
        f"# {args.name}, version 2\n\nA {model.num_parameters():,}-parameter {type(model).__name__} base model, "
        f"written on {datetime.date.today()} by\n\n    python examples/make_tiny.py {args.name} --seed {args.seed}"
        f"\n\n(torch {torch.__version__}, transformers "
        f"{transformers.__version__}, one CPU thread). Mean reward at temperature 1 on the `select` split:\n\n"
        f"| task | reward |\n|---|---|\n{table}\n"
    )


if __name__ == "__main__":
    main()
