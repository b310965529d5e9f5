"""Partial forward passes, which score one batch repeatedly while one block changes and skip the blocks below it.

The hidden state that enters the changed block is kept for each micro-batch, and moves up from block to block. Trying S
changes of each of L blocks so costs about S * L^2 / 2 block forwards instead of S * L^2. This works for any
architecture, because every pass computes masks, positions and all other inputs of the blocks again.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from autolayer.models.layers import find_layers
from autolayer.training.logprobs import ScoreBatch, log_probs
from autolayer.training.skip_blocks import skipping

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest difference of log-probabilities, in nats, that rounding explains; `NARROW` for all other dtypes."""
NARROW = 0.1


class PartialForward:
    """Forward passes over micro-batches that start at one block. Use inside `logprobs.scoring`.

    Gradients reach the blocks from `layer` up. If `fixed`, passes start at the lowest block, for a model whose blocks
    exchange more than a hidden state.
    """

    def __init__(self, model: PreTrainedModel, parts: Sequence[ScoreBatch], *, fixed: bool = False) -> None:
        self.model, self.parts, self.fixed = model, tuple(parts), fixed
        self.blocks = find_layers(model)
        self.layer = 0
        self._states: Sequence[torch.Tensor | None] = [None] * len(self.parts)

    def move_to(self, layer: int) -> int:
        """Makes passes start at a block, whose input is computed with the weights now in the model.

        Returns the number of blocks that were run for this, per micro-batch; to move down, all from the lowest are.
        """
        if self.fixed or layer == self.layer:
            return 0
        if layer < self.layer:
            self.layer, self._states = 0, [None] * len(self.parts)
        states = [self._state_entering(layer, index) for index in range(len(self.parts))]
        run, self.layer, self._states = layer - self.layer, layer, states
        return run

    def start_at(self, layer: int, states: Sequence[torch.Tensor]) -> None:
        """Makes passes start at a block with these states, one for each micro-batch, which an earlier pass computed."""
        assert not self.fixed and len(states) == len(self.parts)
        self.layer, self._states = layer, states

    def log_probs(self) -> Iterator[torch.Tensor]:
        """Yields the log-probabilities of each micro-batch, (B, T - 1); see `logprobs.log_probs`."""
        for index, part in enumerate(self.parts):
            with self._skipping_below(index):
                yield log_probs(self.model, part)

    def _state_entering(self, layer: int, index: int) -> torch.Tensor:
        """Returns the hidden state that enters a block in a pass over one micro-batch, (B, T, D)."""

        def stop(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        hook = self.blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with hook, self._skipping_below(index):
                log_probs(self.model, self.parts[index])
        except _Reached as reached:
            return reached.state
        raise AssertionError(f"the forward pass did not call block {layer}")

    def _skipping_below(self, index: int) -> AbstractContextManager[None]:
        state = self._states[index]
        return nullcontext() if state is None else skipping(self.blocks[: self.layer], state)


class _Reached(Exception):
    def __init__(self, state: torch.Tensor) -> None:
        self.state = state


def can_start_midway(model: PreTrainedModel) -> bool:
    """Returns whether a pass that starts in the middle gives the same log-probabilities as a whole one.

    Two sequences are scored, with a pass over two others in between, which finds blocks that keep something from the
    last pass. Passes start at the middle and at the last block, which finds upper blocks that read what a lower one
    computed (Gemma's shared keys). Use it inside `logprobs.scoring` only.
    """
    embedding: Any = model.get_input_embeddings()
    ids = torch.arange(64, device=model.device).view(4, 16) % len(embedding.weight)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0  # padding
    (_, few), (_, others) = ScoreBatch(input_ids=ids, attention_mask=mask, completion_mask=mask).split(2)
    whole, partial = log_probs(model, few), PartialForward(model, [few])
    for layer in (len(partial.blocks) // 2, len(partial.blocks) - 1):
        partial.move_to(layer)
        log_probs(model, others)
        try:
            (found,) = partial.log_probs()
        except Exception:  # a block returns more than a hidden state, or reads what a skipped one should have computed
            return False
        if not (whole - found).abs().max() <= TOLERANCE.get(model.dtype, NARROW):
            return False
    return True
