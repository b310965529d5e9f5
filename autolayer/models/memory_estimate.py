"""What a device and its host must hold while layers are trained, worked out from shapes alone.

The model is one without weights (on torch's meta device). A pass over one sequence is traced, and what autograd saves
is counted once by storage: so it is right for any architecture, for any choice of trained layers (a frozen linear map
does not keep its input), and for recomputation. Attention is traced as the fused kernels save it, without the (T, T)
scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from autolayer.core.layer_set import Layers
from autolayer.models.activation_checkpointing import checkpoint_activations
from autolayer.models.layers import find_layers, layer_parameters

HEAD_TILE = 4096 * 32768
"""Logits that TRL's fused head computes at once (trl/kernels/chunked_logprob.py)."""
TILES = {"cuda": 1, "cpu": 6}
"""How many tiles it holds: without its kernel, torch's own operations make copies (examples/benchmarks/memory.py)."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchShape:
    """How forward and backward passes are made (passes.py)."""

    width: int
    """Tokens of the longest sequence, prompt and completion."""
    tokens: int
    recompute: bool
    batch: int
    """Sequences that there are."""
    device: str = "cuda"
    """Kind of device."""
    shards: int = 1
    """Processes that the blocks are divided among (shards.py)."""

    @property
    def sequences(self) -> int:
        """In one pass."""
        return min(self.batch, max(1, self.tokens // self.width))


def probing_bytes(model: Any, layers: Layers, passing: MicroBatchShape) -> dict[str, int]:
    """What the device holds in the shared backward pass, by what it is for.

    Args:
        model: On the meta device.
        layers: The candidates.
        passing: How passes are made.
    """
    return {
        "weights": _weights(model, passing, 1),
        "activations": activation_bytes(model, layers, passing) * passing.sequences,
        "working space": _working(model, passing) + _largest(model),
    }


def training_bytes(
    model: Any, layers: Layers, passing: MicroBatchShape, *, num_trained: int, reference: bool = False
) -> dict[str, int]:
    """What the device holds while some layers are trained, by what it is for; the key-value cache takes what is left.

    Args:
        model: On the meta device.
        layers: What is trained.
        passing: How passes are made.
        num_trained: Parameters that are trained; fewer than the layers have where they are adapters.
        reference: Whether a KL term wants the base weights as well.
    """
    head = model.get_output_embeddings().weight.numel()
    return {
        "weights": _weights(model, passing, 0 if layers == "full" else len(layers)),
        "float32 master, gradient and Adam": 16 * num_trained,
        **({"reference for the KL term": model.dtype.itemsize * num_trained} if reference else {}),
        "activations": activation_bytes(model, layers, passing) * passing.sequences,
        "working space": _working(model, passing) + (4 * head if layers == "full" else 0),
    }


def gradient_bytes(model: Any, layers: Layers, num_folds: int) -> int:
    """What the host holds of the shared batch's gradients: of complete folds, and in float32 of the last one."""
    numel = sum(p.numel() for p in layer_parameters(model, layers).values())
    return numel * (model.dtype.itemsize * (num_folds - 1) + 4)


def _weights(model: Any, passing: MicroBatchShape, held: int) -> int:
    """Returns the bytes of the weights that one process holds.

    With shards that is its share of the blocks, the `held` blocks that are kept whole, the one that is computing, and
    the buffer that it is gathered in.
    """
    whole, blocks = _bytes(model), sum(map(_bytes, find_layers(model)))
    return whole if passing.shards == 1 else whole - blocks + blocks // passing.shards + (held + 2) * _largest(model)


def _largest(model: Any) -> int:
    return max(map(_bytes, find_layers(model)))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _working(model: Any, passing: MicroBatchShape) -> int:
    """Gradients of one block's activations (and these themselves, where they are recomputed), and the head's tiles."""
    last = (len(find_layers(model)) - 1,)
    block = activation_bytes(model, last, replace(passing, recompute=False)) * passing.sequences
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    tokens = passing.sequences * passing.width
    tiles = TILES.get(passing.device, 1) * min(HEAD_TILE, tokens * vocabulary) * model.dtype.itemsize
    return tiles + 4 * tokens * hidden + (block if passing.recompute else block // 2)


def activation_bytes(model: Any, layers: Layers, passing: MicroBatchShape) -> int:
    """Bytes that a pass over one sequence keeps until its backward pass, the output head apart."""
    if model.dtype == torch.float32 and hasattr(model.config.get_text_config(decoder=True), "num_experts_per_tok"):
        # torch has no shapes of grouped products in float32; norms, which are float32 in any case, then count twice.
        try:
            return 2 * activation_bytes(model.to(torch.bfloat16), layers, passing)
        finally:
            model.to(torch.float32)
    trained = layer_parameters(model, layers)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, or its number would be used again
        return tensor

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    ids = torch.zeros(1, passing.width, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, passing.width, passing.width, dtype=torch.bool, device="meta")
    lowest = 0 if layers == "full" else min(layers)
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        with (
            _traced_attention(model),
            checkpoint_activations(model, lowest) if passing.recompute else nullcontext(),
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        ):
            model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return sum(storage.nbytes() for storage in kept.values())


class _SavedAsFused(torch.autograd.Function):
    """Saves what fused attention kernels save: queries, keys, values, the output and a number for each row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError("shapes only")


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """In place of a real attention function: (B, H, T, D) in, (B, T, H, D) out."""
    groups = getattr(module, "num_key_value_groups", 1)  # with a padding mask transformers repeats keys and values
    output = _SavedAsFused.apply(query, repeat_kv(key, groups), repeat_kv(value, groups))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("autolayer_traced", _attend)


@contextmanager
def _traced_attention(model: Any) -> Iterator[None]:
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = "autolayer_traced"
    try:
        yield
    finally:
        config._attn_implementation = before
