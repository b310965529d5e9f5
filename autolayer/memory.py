"""What a device and its host must hold while layers are trained, worked out from shapes alone.

The model is one without weights (on torch's meta device). A pass over one sequence is traced, and what autograd saves
is counted once by storage: so it is right for any architecture, for any choice of trained layers (a frozen linear map
does not keep its input), and for recomputation. Attention is traced as the fused kernels save it, without the (T, T)
scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from autolayer.arms import Layers
from autolayer.layers import find_layers, layer_parameters
from autolayer.recompute import recomputing

HEAD_TILE = 4096 * 32768
"""Logits that TRL's fused head computes at once (trl/kernels/chunked_logprob.py)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes, by what they are for. The key-value cache is not among them: it takes half of what is free."""

    device: dict[str, int]
    host: dict[str, int]

    @property
    def on_device(self) -> int:
        return sum(self.device.values())


def training_memory(
    model: Any, layers: Layers, *, width: int, tokens: int, recompute: bool, reference: bool, num_trained: int
) -> Memory:
    """What training some layers needs.

    Args:
        model: On the meta device.
        layers: What is trained.
        width: Tokens of the longest sequence, prompt and completion.
        tokens: Tokens of a pass at the most (passes.py).
        recompute: As the trainer's setting.
        reference: Whether a KL term wants the base weights as well.
        num_trained: Parameters that are trained; fewer than the layers have where they are adapters.
    """
    sequences = max(1, tokens // width)
    size, hidden = model.dtype.itemsize, model.config.get_text_config(decoder=True).hidden_size
    head = model.get_output_embeddings().weight
    block = kept_bytes(model, (len(find_layers(model)) - 1,), width) * sequences
    working = min(HEAD_TILE, sequences * width * head.shape[0]) * size + sequences * width * hidden * 4
    return Memory(
        device={
            "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
            "float32 master, gradient and Adam of what is trained": 16 * num_trained,
            **({"a second copy of what is trained, for the KL term": size * num_trained} if reference else {}),
            "activations kept for the backward pass": kept_bytes(model, layers, width, recompute=recompute) * sequences,
            "working space of a block and the output head": working
            + (block if recompute else block // 2)
            + (4 * head.numel() if layers == "full" else 0),
        },
        host={"base copies of what is trained": size * num_trained},
    )


def kept_bytes(model: Any, layers: Layers, width: int, *, recompute: bool = False) -> int:
    """Bytes that a pass over one sequence of `width` tokens keeps until its backward pass, the output head apart.

    Args:
        model: On the meta device.
        layers: What is trained.
        width: Tokens, padding included.
        recompute: As the trainer's setting.
    """
    if model.dtype == torch.float32 and hasattr(model.config.get_text_config(decoder=True), "num_experts_per_tok"):
        # torch has no shapes of grouped products in float32; norms, which are float32 in any case, then count twice.
        try:
            return 2 * kept_bytes(model.to(torch.bfloat16), layers, width, recompute=recompute)
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
    ids = torch.zeros(1, width, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, width, width, dtype=torch.bool, device="meta")
    lowest = 0 if layers == "full" else min(layers)
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        with (
            _traced_attention(model),
            recomputing(model, lowest) if recompute else nullcontext(),
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
