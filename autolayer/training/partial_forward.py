"""Partial forward passes: scoring one batch again and again with one block changed, without running those below it.

A walk up the stack holds what enters one block, for each micro-batch. Blocks below it are skipped, so trying S changes
of each of L blocks costs about S * L^2 / 2 block forwards instead of S * L^2. Nothing here knows an architecture:
masks, positions and all other inputs that a decoder gives its blocks are computed again in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from autolayer.models.layers import find_layers
from autolayer.training.logprobs import ScoreBatch, log_probs
from autolayer.training.skip_blocks import skipping

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Nats by which log-probabilities may differ if they are the same but for rounding; else `NARROW`."""
NARROW = 0.1


class PartialForward:
    """Forward passes over micro-batches that start at one block. Use inside `logprobs.scoring`, without gradients.

    Args:
        model: With the weights that the states are to be made by.
        parts: The micro-batches.
        fixed: Always start at the lowest block, for a model whose blocks exchange more than a hidden state.
    """

    def __init__(self, model: PreTrainedModel, parts: Sequence[ScoreBatch], *, fixed: bool = False) -> None:
        self.model, self.parts, self.fixed = model, tuple(parts), fixed
        self.blocks = find_layers(model)
        self.layer = 0
        self.num_tokens = sum(int(part.attention_mask.sum()) for part in self.parts)
        """Real tokens of all micro-batches."""
        self._states: Sequence[torch.Tensor | None] = [None] * len(self.parts)

    def move_to(self, layer: int) -> int:
        """Makes passes start at a block, from states made with the weights now in the model.

        Returns:
            The number of blocks that were run on the way; a block further down is reached from the start.
        """
        if self.fixed or layer == self.layer:
            return 0
        if layer < self.layer:
            self.layer, self._states = 0, [None] * len(self.parts)
        states = [self._until(layer, index) for index in range(len(self.parts))]
        run, self.layer, self._states = layer - self.layer, layer, states
        return run

    def log_probs(self) -> Iterator[torch.Tensor]:
        """Yields `logprobs.log_probs` of one micro-batch after the other."""
        for index, part in enumerate(self.parts):
            with self._started(index):
                yield log_probs(self.model, part)

    def _until(self, layer: int, index: int) -> torch.Tensor:
        def stop(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with self._started(index):
                log_probs(self.model, self.parts[index])
        except _Reached as reached:
            return reached.state
        finally:
            handle.remove()
        raise AssertionError(f"the forward pass went around block {layer}")

    def _started(self, index: int) -> AbstractContextManager[None]:
        """Skips the blocks below for one micro-batch."""
        state = self._states[index]
        return nullcontext() if state is None else skipping(self.blocks[: self.layer], state)


class _Reached(Exception):
    """Ends a forward pass at the block whose input is wanted."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state


def any_batch(model: PreTrainedModel) -> ScoreBatch:
    """Returns four short sequences, one of them padded, to try a model on."""
    embedding: Any = model.get_input_embeddings()
    ids = torch.arange(64, device=model.device).view(4, 16) % len(embedding.weight)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return ScoreBatch(input_ids=ids, attention_mask=mask, completion_mask=mask)


def can_start_midway(model: PreTrainedModel, batch: ScoreBatch) -> bool:
    """Returns whether a pass that starts in the middle gives the same as a whole one. Inside `logprobs.scoring`.

    Tried on two sequences, with two others in between: a block must not remember something of the last pass. Tried in
    the middle and at the last block: upper blocks may read what some lower one has left (Gemma's shared keys).
    """
    (_, few), *more = batch.split(2)
    others = more[0][1] if more else replace(few, input_ids=few.input_ids.roll(1, dims=1))
    whole, partial = log_probs(model, few), PartialForward(model, [few])
    for layer in (len(partial.blocks) // 2, len(partial.blocks) - 1):
        partial.move_to(layer)
        log_probs(model, others)
        try:
            (found,) = partial.log_probs()
        except (KeyError, AttributeError, TypeError):  # what it was to read is not there
            return False
        if not (whole - found).abs().max() <= TOLERANCE.get(model.dtype, NARROW):
            return False
    return True
