"""Estimates the memory that training needs on the device and the host, from shapes alone.

The model has no weights (it is on torch's meta device). A forward pass over one sequence is traced, and every storage
that autograd saves is counted once. The estimate therefore holds for any architecture, for any choice of trained layers
(a frozen linear layer does not save its input), and for activation checkpointing. Attention is traced as fused kernels
save it, without the (T, T) scores.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from autolayer.core.layer_set import Layers
from autolayer.models.activation_checkpointing import checkpoint_activations
from autolayer.models.layers import find_layers, layer_parameters

HEAD_TILE = 4096 * 32768
"""Number of logits that TRL's fused head computes at once (trl/kernels/chunked_logprob.py)."""
TILES = {"cuda": 1, "cpu": 6}
"""Number of tiles that the head holds at once, by kind of device. On a CPU, where its kernel is missing, torch's
operations make copies (examples/benchmarks/memory.py)."""

_TRACED: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()
"""What models were found to save, since a forecast asks for the same with each size of micro-batches."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchShape:
    """Size of one micro-batch (see `training.out_of_memory`)."""

    width: int
    """Number of tokens of the longest sequence, prompt and completion together."""
    tokens: int
    """Largest number of tokens in one micro-batch; a micro-batch has at least one sequence."""
    activation_checkpointing: bool
    """True if activations are recomputed in the backward pass (activation checkpointing)."""
    batch: int
    """Number of sequences in the whole batch."""
    device: str = "cuda"
    """Kind of device: "cuda" or "cpu"."""
    shards: int = 1
    """Number of processes that share the blocks (see `distributed.fsdp`)."""

    @property
    def sequences(self) -> int:
        """Number of sequences in one micro-batch."""
        return min(self.batch, max(1, self.tokens // self.width))


def probing_bytes(model: Any, layers: Layers, micro_batches: MicroBatchShape) -> dict[str, int]:
    """Estimates the device memory of the probes' shared backward pass.

    Args:
        model: The model on the meta device.
        layers: The candidate layers.
        micro_batches: Size of a micro-batch.

    Returns:
        Bytes by purpose.
    """
    return {
        "weights": _weight_bytes(model, micro_batches, 1),
        "activations": activation_bytes(model, layers, micro_batches) * micro_batches.sequences,
        "working space": _working_bytes(model, micro_batches) + _largest_block_bytes(model),
    }


def training_bytes(
    model: Any, layers: Layers, micro_batches: MicroBatchShape, *, num_trained: int, reference: bool = False
) -> dict[str, int]:
    """Estimates the device memory of training; the key-value cache is not included, as it takes what is left.

    Args:
        model: The model on the meta device.
        layers: The trained layers.
        micro_batches: Size of a micro-batch.
        num_trained: Number of trained parameters; with adapters, fewer than the layers have.
        reference: True if a KL term needs the base weights of the trained layers as well.

    Returns:
        Bytes by purpose.
    """
    head = model.get_output_embeddings().weight.numel()
    return {
        "weights": _weight_bytes(model, micro_batches, 0 if layers == "full" else len(layers)),
        "float32 master, gradient and Adam": 16 * num_trained,
        **({"reference for the KL term": model.dtype.itemsize * num_trained} if reference else {}),
        "activations": activation_bytes(model, layers, micro_batches) * micro_batches.sequences,
        "working space": _working_bytes(model, micro_batches) + (4 * head if layers == "full" else 0),
    }


def gradient_bytes(model: Any, layers: Layers, num_folds: int) -> int:
    """Returns the host memory, in bytes, of the shared batch's gradients.

    Complete folds are stored in the model's dtype and the fold in progress in float32.

    Args:
        model: The model on the meta device.
        layers: The candidate layers.
        num_folds: Number of folds of the shared batch.
    """
    numel = sum(p.numel() for p in layer_parameters(model, layers).values())
    return numel * (model.dtype.itemsize * (num_folds - 1) + 4)


def _weight_bytes(model: Any, micro_batches: MicroBatchShape, held: int) -> int:
    """Returns the bytes of the weights that one process holds.

    With shards that is its share of the blocks, the `held` blocks that are kept whole, the one that is computing, and
    the buffer that it is gathered in.
    """
    whole, blocks = _bytes(model), sum(map(_bytes, find_layers(model)))
    if micro_batches.shards == 1:
        return whole
    return whole - blocks + blocks // micro_batches.shards + (held + 2) * _largest_block_bytes(model)


def _largest_block_bytes(model: Any) -> int:
    return max(map(_bytes, find_layers(model)))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _working_bytes(model: Any, micro_batches: MicroBatchShape) -> int:
    """Returns the bytes of the head's tiles and of the gradients of one block's activations.

    With activation checkpointing, the activations of that block are added.
    """
    last = (len(find_layers(model)) - 1,)
    block = (
        activation_bytes(model, last, replace(micro_batches, activation_checkpointing=False)) * micro_batches.sequences
    )
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    tokens = micro_batches.sequences * micro_batches.width
    tiles = TILES.get(micro_batches.device, 1) * min(HEAD_TILE, tokens * vocabulary) * model.dtype.itemsize
    return tiles + 4 * tokens * hidden + (block if micro_batches.activation_checkpointing else block // 2)


def activation_bytes(model: Any, layers: Layers, micro_batches: MicroBatchShape) -> int:
    """Returns the bytes that a forward pass over one sequence saves for its backward pass, without the output head.

    Args:
        model: The model on the meta device.
        layers: The trained layers.
        micro_batches: Gives the length of the sequence, and whether activations are checkpointed.
    """
    if model.dtype == torch.float32 and hasattr(model.config.get_text_config(decoder=True), "num_experts_per_tok"):
        # torch cannot trace grouped matmuls in float32 on meta. Norms, float32 in either dtype, are counted twice here.
        try:
            return 2 * activation_bytes(model.to(torch.bfloat16), layers, micro_batches)
        finally:
            model.to(torch.float32)
    trained = layer_parameters(model, layers)
    known = _TRACED.setdefault(model, {})
    traced = (micro_batches.width, micro_batches.activation_checkpointing, model.dtype, model.training, *trained)
    if traced not in known:
        known[traced] = _traced_bytes(model, layers, trained, micro_batches)
    return known[traced]


def _traced_bytes(
    model: Any, layers: Layers, trained: Mapping[str, nn.Parameter], micro_batches: MicroBatchShape
) -> int:
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # keeps the storage alive, so that its address is not reused
        return tensor

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    ids = torch.zeros(1, micro_batches.width, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, micro_batches.width, micro_batches.width, dtype=torch.bool, device="meta")
    lowest = 0 if layers == "full" else min(layers)
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        with (
            _traced_attention(model),
            checkpoint_activations(model, lowest) if micro_batches.activation_checkpointing else nullcontext(),
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        ):
            model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return sum(storage.nbytes() for storage in kept.values())


class _SavedAsFused(torch.autograd.Function):
    """Saves what fused attention kernels save: queries, keys, values, the output and one number per row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _traced_attention_forward(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """Replaces the attention function in a trace: takes (B, H, T, D), returns (B, T, H, D)."""
    groups = getattr(module, "num_key_value_groups", 1)  # with a padding mask transformers repeats keys and values
    output = _SavedAsFused.apply(query, repeat_kv(key, groups), repeat_kv(value, groups))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("autolayer_traced", _traced_attention_forward)


@contextmanager
def _traced_attention(model: Any) -> Iterator[None]:
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = "autolayer_traced"
    try:
        yield
    finally:
        config._attn_implementation = before
