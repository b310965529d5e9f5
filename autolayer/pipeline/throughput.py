"""Estimates this machine's speed with a model by timing a few of its blocks, before the weights are loaded.

Forward and backward passes and generation by transformers are timed. vLLM is not started; its time is computed from its
bounds: each step reads all weights once for the whole batch, reads every sequence's cache, and makes a forward pass.
The estimate is uncertain by a factor of two or three, because lengths of completions and other load are unknown.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from autolayer.core.costs import Cost, CostModel
from autolayer.models.layers import find_layers
from autolayer.rollouts.engines.base import MAX_SEQUENCES
from autolayer.rollouts.engines.hf import TransformersEngine, cache_bytes_per_token, contiguous_head

SHALLOW, DEEP = 1, 3
"""Numbers of blocks of the two timed models; the difference of their times is the time of the additional blocks."""
VOCABULARY = 1024
"""Vocabulary of the timed models; the real head counts as a number of blocks (`CostModel.head_ratio`)."""
PASS_TOKENS, NEW_TOKENS, REPEATS = 2048, 12, 2
"""Tokens of a timed pass, tokens that each sequence generates, and repetitions, of which the fastest counts."""
MAX_CPU_SEQUENCES, MAX_CPU_PARAMETERS = 64, 10_000_000
"""Limits of the timing on a CPU: sequences generated at once, because more are not faster per sequence, and parameters
of a block, because larger blocks take too long."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Seconds per unit of work."""

    layer_token: float
    """Seconds for one token through one block, in a pass over many tokens."""
    decode_step: float
    """Seconds for one more token of each of `batch` sequences."""
    batch: int

    def seconds(self, cost: Cost, costs: CostModel) -> float:
        """Returns the seconds that some work takes when all batches are full."""
        passes = cost.layer_tokens - costs.generate(0, cost.generated_tokens).layer_tokens
        return max(0.0, passes) * self.layer_token + cost.generated_tokens * self.decode_step / self.batch


def measure_throughput(
    shape: Any, tokenizer: Any, costs: CostModel, device: torch.device, *, width: int, batch: int, vllm: bool
) -> Throughput | None:
    """Times a small model on `device` with blocks of the shape of a model on the meta device.

    A sequence has `width` tokens, and `batch` of them are generated together, by vLLM if `vllm`. Returns None if the
    architecture cannot be built with fewer blocks, or is too large for a CPU.
    """
    batch = min(batch, MAX_SEQUENCES)
    if device.type != "cuda":
        if sum(p.numel() for p in find_layers(shape)[0].parameters()) > MAX_CPU_PARAMETERS:
            return None
        batch = min(batch, MAX_CPU_SEQUENCES)
    try:
        bandwidth = _bandwidth(device) if vllm else 0.0
        timed = [_build(shape, depth, device) for depth in (SHALLOW, DEEP)]
        shallow_pass, deep_pass = (_pass_seconds(model, width) for model in timed)
        shallow_step, deep_step = (0.0, 0.0) if vllm else (_step_seconds(m, tokenizer, width, batch) for m in timed)
    except (ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError):
        return None  # the architecture cannot have fewer blocks, or memory is too small
    # A pass is 3 layer-tokens for each token and block: one forward, two backward.
    layer_token = max((deep_pass - shallow_pass) / (DEEP - SHALLOW), deep_pass / (4 * DEEP)) / 3
    num_blocks = costs.num_layers + costs.head_ratio
    if vllm:
        weights = sum(p.numel() * p.element_size() for p in shape.parameters())
        cached = batch * width / 2 * cache_bytes_per_token(shape)
        step = (weights + cached) / bandwidth + batch * layer_token * num_blocks
    else:
        step = shallow_step + (num_blocks - SHALLOW) * max((deep_step - shallow_step) / (DEEP - SHALLOW), 0.0)
    return Throughput(layer_token=layer_token, decode_step=step, batch=batch)


def _build(shape: Any, num_blocks: int, device: torch.device) -> Any:
    config = copy.deepcopy(shape.config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers, text.vocab_size = num_blocks, VOCABULARY
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_blocks]
    text.pad_token_id = text.bos_token_id = text.eos_token_id = 0
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=shape.dtype).eval()
    model.get_input_embeddings().requires_grad_(False)
    return model


def _pass_seconds(model: Any, width: int) -> float:
    """Returns the seconds of one token in a forward and backward pass."""
    width = min(width, PASS_TOKENS)
    ids = torch.ones(max(1, PASS_TOKENS // width), width, dtype=torch.long, device=model.device)

    def forward_and_backward() -> None:
        with contiguous_head(model):
            model(input_ids=ids, logits_to_keep=1).logits.float().sum().backward()
        model.zero_grad()

    return _fastest(forward_and_backward, model.device) / ids.numel()


def _step_seconds(model: Any, tokenizer: Any, width: int, batch: int) -> float:
    """Returns the seconds of one more token for every sequence of a batch, generated by transformers."""

    def generate(num_tokens: int) -> None:
        engine = TransformersEngine(model, tokenizer, max_new_tokens=num_tokens, temperature=1.0)
        engine.pad_token_id, engine.eos_token_ids = 0, []
        engine.generate([[1] * max(1, min(width, PASS_TOKENS) // 2)] * batch, range(batch))

    # Both calls read the prompts, so the difference is the time of the additional tokens.
    more = _fastest(lambda: generate(1 + NEW_TOKENS), model.device)
    one = _fastest(lambda: generate(1), model.device)
    return max(more - one, 0.1 * more) / NEW_TOKENS


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    found = []
    for _ in range(REPEATS + 1):  # the first one fills caches and loads kernels
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


def _bandwidth(device: torch.device) -> float:
    """Returns the bytes that the device's memory moves in a second."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy_all() -> None:
        target.copy_(source)

    return 2 * source.numel() / _fastest(copy_all, device)
