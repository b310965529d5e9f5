"""Builds LayerBench's base models: very small, each pretrained from scratch on its own languages, with its own seed.

    python examples/layerbench/bases.py NAME --out FOLDER    # 1 to 6 minutes on one CPU thread

Some bases are asked for the answer after earlier layers, too (early exits, as in LayerSkip). What they know is then
there early in depth, and a decision that is to use it has to be made before: that puts a hump there. Others mix layers
that see the whole line with layers that see only a few tokens back (sliding windows, as Gemma 2 and 3, GPT-OSS and
parts of Qwen2 have them).
"""

import argparse
import random
import string
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from languages import LANGUAGES, Line
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from worlds import WORLDS, corpus

sys.path.append(str(Path(__file__).parents[1]))

from expr_writers import expr_line  # noqa: E402

ARCHITECTURES = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " "
POSITIONS = 64


@dataclass(frozen=True, kw_only=True)
class Base:
    """The recipe of a base model."""

    architecture: str
    layers: int
    hidden: int
    languages: tuple[str, ...]
    """Names of languages, worlds, and `expr` for code; pretraining lines come from all of them in equal parts."""
    seed: int
    wide: tuple[int, ...] | None = None
    """Layers that see the whole line, the others only `window` tokens; None if all do."""
    window: int = 5
    exits: int | None = None
    """Layers after which the answer is asked for, from this one up to the last, as in LayerSkip (arXiv 2404.16710)."""
    steps: int = 1600
    batch: int = 128
    rate: float = 3e-3
    tied: bool = False


BASES: dict[str, Base] = {
    "walk-qwen2": Base(architecture="qwen2", layers=10, hidden=64, languages=("walk",), seed=3, steps=1200, batch=256),
    "walk-llama": Base(architecture="llama", layers=12, hidden=48, languages=("walk_each",), seed=5),
    "far-qwen3": Base(
        architecture="qwen3", layers=10, hidden=48, languages=("walk_far",), seed=11, wide=(7,), window=3
    ),
    "capital-qwen2": Base(
        architecture="qwen2", layers=10, hidden=48, languages=("walk_capital",), seed=12, wide=(3,), window=4
    ),
    "gap-qwen3": Base(
        architecture="qwen3", layers=10, hidden=48, languages=("gap",), seed=7, wide=(6,), window=3, steps=2000
    ),
    "symbols-llama": Base(architecture="llama", layers=6, hidden=64, languages=("noisy", "reading"), seed=21),
    "lists-qwen3": Base(architecture="qwen3", layers=8, hidden=64, languages=("order", "recall"), seed=22),
    "symbols-qwen2": Base(architecture="qwen2", layers=12, hidden=48, languages=("noisy", "reading"), seed=24),
    "mixed-qwen3": Base(architecture="qwen3", layers=9, hidden=56, languages=("reading", "walk"), seed=31),
    "mixed-llama": Base(architecture="llama", layers=8, hidden=56, languages=("order", "gap"), seed=32),
    "exit-llama": Base(architecture="llama", layers=12, hidden=48, languages=("noisy", "reading"), seed=41, exits=4),
    "exit-qwen3": Base(architecture="qwen3", layers=12, hidden=56, languages=("reading", "walk"), seed=42, exits=5),
    "exit-qwen2": Base(architecture="qwen2", layers=14, hidden=48, languages=("noisy", "reading"), seed=46, exits=5),
    "exit-deep": Base(architecture="qwen3", layers=18, hidden=48, languages=("reading", "walk"), seed=47, exits=8),
    "shut-llama": Base(architecture="llama", layers=11, hidden=48, languages=("reading", "order"), seed=51, exits=4),
    "shut-qwen2": Base(architecture="qwen2", layers=10, hidden=48, languages=("walk_each", "noisy"), seed=52),
    "trip-llama": Base(architecture="llama", layers=8, hidden=48, languages=("trip",), seed=61),
    "errand-qwen3": Base(architecture="qwen3", layers=10, hidden=48, languages=("errand",), seed=62, exits=4),
    "both-qwen2": Base(architecture="qwen2", layers=8, hidden=48, languages=("trip", "errand"), seed=65),
    "expr-llama": Base(architecture="llama", layers=8, hidden=64, languages=("expr",), seed=64, steps=1200),
    "shut-trip": Base(architecture="qwen3", layers=9, hidden=48, languages=("trip",), seed=71, exits=3, steps=1200),
    "shut-expr": Base(architecture="qwen2", layers=10, hidden=56, languages=("expr",), seed=72, steps=1200),
    "deep-llama": Base(architecture="llama", layers=20, hidden=48, languages=("walk_many",), seed=23),
}


def build_tokenizer(more: str = "") -> PreTrainedTokenizerFast:
    """One token per printable character, and for each of `more`; no BOS, no chat template."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL.values(), *CHARACTERS, *more])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False, **SPECIAL,
    )  # fmt: skip


def build_model(base: Base, vocabulary: int):
    """A random model of the base's shape, in float32."""
    settings = {
        "vocab_size": vocabulary, "hidden_size": base.hidden, "intermediate_size": 3 * base.hidden,
        "num_hidden_layers": base.layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": base.hidden // 4, "max_position_embeddings": POSITIONS, "tie_word_embeddings": base.tied,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "dtype": "float32",
        "initializer_range": 0.8 / base.hidden**0.5,  # with the usual 0.02 it learns far more slowly
    }  # fmt: skip
    if base.wide is not None:
        kinds = ["full_attention" if i in base.wide else "sliding_attention" for i in range(base.layers)]
        settings |= {"use_sliding_window": True, "sliding_window": base.window, "layer_types": kinds}
    torch.manual_seed(base.seed)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[base.architecture](**settings))


def encode(tokenizer: PreTrainedTokenizerFast, lines: Sequence[Line]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, right-padded; labels cover what is answered and its end."""
    flat = iter(tokenizer([part for parts in lines for part in parts])["input_ids"])
    rows: list[tuple[list[int], list[int]]] = []
    for parts in lines:
        ids, labels = [], []
        for index, part in enumerate(next(flat) for _ in parts):
            ids += part
            labels += part if index % 2 else [-100] * len(part)
        rows.append(([*ids, 1], [*labels, 1]))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    return input_ids, torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])


def line(name: str, rng: random.Random) -> Line:
    """A pretraining line of a language, of a world, or of code."""
    if name in LANGUAGES:
        return LANGUAGES[name].corpus(rng)
    if name in WORLDS:
        return corpus(WORLDS[name], rng)
    before, _, answer = expr_line(rng).partition("=")
    return f"{before}=", answer


def loss_of(model, base: Base, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers, the mean over the layers that answer."""
    found = model(input_ids=input_ids, labels=labels, use_cache=False, output_hidden_states=base.exits is not None)
    if base.exits is None:
        return found.loss
    early = [model.lm_head(model.model.norm(hidden)) for hidden in found.hidden_states[base.exits + 1 : -1]]
    losses = [model.loss_function(logits=logits, labels=labels, vocab_size=model.vocab_size) for logits in early]
    return torch.stack([*losses, found.loss]).mean()


def pretrain(base: Base, folder: Path) -> float:
    """Writes the base as a Hugging Face folder; returns its last training loss."""
    tokenizer = build_tokenizer("\n" if set(base.languages) & set(WORLDS) else "")
    model = build_model(base, len(tokenizer))
    rng = random.Random(f"layerbench/{base.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.rate, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, base.rate, total_steps=base.steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    losses = []
    for _ in range(base.steps):
        lines = [line(rng.choice(base.languages), rng) for _ in range(base.batch)]
        input_ids, labels = encode(tokenizer, lines)
        loss = loss_of(model, base, input_ids, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, do_sample=True, temperature=1.0, top_k=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(losses[-50:]) / len(losses[-50:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BASES)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    loss = pretrain(BASES[options.name], options.out)
    print(f"{options.name}: loss {loss:.3f} after {time.perf_counter() - started:.0f} s, in {options.out}")


if __name__ == "__main__":
    main()
