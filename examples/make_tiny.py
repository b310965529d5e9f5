"""Pretrains the packaged base model `tiny`: a 0.4M-parameter Qwen3 on character arithmetic, from scratch.

    python examples/make_tiny.py  # one CPU thread, 4 to 8 minutes; pass rate about .41; overwrites autolayer/data/tiny

The text is `autolayer.tasks.math.arith.corpus`; the loss is on the answer and its end. No validation split and no early
stop: the number that matters is the pass rate printed at the end, which should leave RL something to win.
"""

from __future__ import annotations

import argparse
import datetime
import random
import string
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import trange
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import autolayer
from autolayer.tasks.math import arith

PACKAGED = Path(list(autolayer.__path__)[0]) / "data" / "tiny"
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
MAX_LENGTH = 256


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; no BOS, no chat template."""
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    vocab = {token: i for i, token in enumerate([*SPECIAL.values(), *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore
        bos_token_id=None,
        initializer_range=0.1,  # nearly 1/sqrt(hidden_size); with the usual 0.02 it learns far more slowly
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def encode_lines(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, right-padded; labels cover what comes after `=`."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [ids + [eos] for ids in tokenizer(lines)["input_ids"]]
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    labels = torch.full_like(input_ids, -100)
    for i, (line, row) in enumerate(zip(lines, rows, strict=True)):
        start = line.index("=") + 1
        labels[i, start : len(row)] = input_ids[i, start : len(row)]
    return input_ids, labels


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    rng = random.Random(f"tiny/{args.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps, pct_start=max(0.05, 2 / args.steps), cycle_momentum=False
    )
    model.train()
    progress = trange(args.steps, desc="pretraining", mininterval=2)
    for step in progress:
        input_ids, labels = encode_lines(tokenizer, [arith.corpus(rng) for _ in range(args.batch_size)])
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


@torch.no_grad()
def pass_rates(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: int = 4) -> dict[str, float]:
    """Share of right answers at temperature 1 on the `select` split, per kind and in all."""
    rows = arith.problems("select", 1000)
    rewards: dict[str, list[float]] = {kind: [] for kind in (*arith.KINDS, "all", "well formed")}
    for start in range(0, len(rows), 250):
        chunk = [row for row in rows[start : start + 250] for _ in range(samples)]
        prompts = [row["prompt"] for row in chunk]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=8, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)  # pyright: ignore
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = arith.reward(prompts, texts, answer=[row["answer"] for row in chunk])
        for row, text, score in zip(chunk, texts, scores, strict=True):
            rewards[row["kind"]].append(score)
            rewards["all"].append(score)
            rewards["well formed"].append(float(arith.is_well_formed(text)))
    return {kind: sum(values) / len(values) for kind, values in rewards.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder to write (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.layers, args.hidden)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, args)
    rates = pass_rates(model, tokenizer)
    table = "\n".join(f"| {kind} | {rate:.3f} |" for kind, rate in rates.items())
    print(table)

    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)  # written as 600, and this folder is packaged
    (args.out / "README.md").write_text(
        f"# tiny\n\nA {model.num_parameters():,}-parameter Qwen3 base model for `math:arith`, written on "
        f"{datetime.date.today()} by\n\n    python examples/make_tiny.py --seed {args.seed} --steps {args.steps} "
        f"--batch-size {args.batch_size} --learning-rate {args.learning_rate:g}\n\n"
        f"(torch {torch.__version__}, transformers {transformers.__version__}, one CPU thread). Pass rates at "
        f"temperature 1 on the `select` split:\n\n| kind | rate |\n|---|---|\n{table}\n"
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
