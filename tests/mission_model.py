r"""A small chat model that knows one kind of word problem about half: what a downloaded Qwen3 stands for in tests.

It is pretrained here, on the very prompts that `--task math` makes, so that its rewards vary and RL has something to
win. With thinking it answers with a number, `\boxed{7}`; without thinking with `\boxed{\frac{14}{2}}`, which only
math-verify can compare with 7.
"""

import random
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from autolayer.tasks.math.reward import INSTRUCTION

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")
THINGS = ("apples", "books", "cards", "eggs", "nuts", "pens", "shells", "stamps")
LARGEST = 9
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
PIECE = r"\\[a-z]+| ?[A-Za-z]+|[0-9]+|[\s\S]"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
"""Qwen3's own, without tools: thinking is on unless it is switched off."""


def problems(num: int, seed: int = 0) -> list[dict[str, str]]:
    """Different word problems in GSM8K's format."""
    numbers = range(1, LARGEST + 1)
    every = [(who, what, a, b) for who in NAMES for what in THINGS for a in numbers for b in numbers]
    return [
        {
            "question": f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have?",
            "answer": f"{who} has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {what}.\n#### {a + b}",
        }
        for who, what, a, b in random.Random(seed).sample(every, num)
    ]


def build_mission_model(folder: Path, rows: list[dict[str, str]], *, num_steps: int = 400) -> Path:
    """Pretrains the model and saves it in bfloat16 with its tokenizer, as a folder of the Hub would be.

    Args:
        folder: Made if it is not there.
        rows: Problems to learn from.
        num_steps: Batches of 32; half a minute on one core.
    """
    tokenizer = _tokenizer()
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(tokenizer))
    model.train()
    luck = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 30, 2 * (num_steps - step) / num_steps)
        texts = [_example(tokenizer, luck.choice(rows), thinking=luck.random() < 0.5, luck=luck) for _ in range(32)]
        ids, labels = _batch(tokenizer, texts)
        logits = model(input_ids=ids, attention_mask=ids.ne(tokenizer.pad_token_id).long(), use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    torch.random.set_rng_state(state)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _example(tokenizer: Any, row: dict[str, str], *, thinking: bool, luck: random.Random) -> tuple[str, str]:
    """The prompt of the task and an answer to it, right every other time."""
    a, b = map(int, re.findall(r"\d+", row["question"]))
    total = a + b if luck.random() < 0.5 else luck.choice([n for n in range(a + b - 2, a + b + 3) if n > 0])
    content = f"{row['question']}\n\n{INSTRUCTION}"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, enable_thinking=thinking
    )
    answer = rf"\boxed{{\frac{{{2 * total}}}{{2}}}}"
    if thinking:
        answer = f"<think>\n{a}+{b}={total}\n</think>\n\n" + rf"\boxed{{{total}}}"
    return prompt, answer + "<|im_end|>"


def _batch(tokenizer: Any, texts: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) padded on the right, and labels that are -100 outside the answers."""
    pairs = [tokenizer([prompt, answer])["input_ids"] for prompt, answer in texts]
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), width), -100)
    for i, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def _tokenizer() -> Any:
    """One token per word, number or sign, so that prompts stay short."""
    texts = [f"{who} has and buys more. How many {what} does {who} have?" for who in NAMES for what in THINGS]
    texts += [INSTRUCTION, r"\boxed{\frac{}}+=", "user\n", "assistant\n", "system\n", " ".join(map(str, range(100)))]
    pieces = dict.fromkeys(piece for text in texts for piece in re.findall(PIECE, text))
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.add_tokens([AddedToken(token, special=True) for token in SPECIAL], special_tokens=True)
    fast.add_tokens([AddedToken(token, special=False) for token in THINK])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _config(tokenizer: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
