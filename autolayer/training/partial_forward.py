"""Scoring one batch again and again with one block changed, without running what lies below it.

A walk up the stack holds what enters one block, for each micro-batch. Blocks below it then hand that on instead of
computing, so trying S changes of each of L blocks costs about S * L^2 / 2 block forwards instead of S * L^2. Nothing
here knows an architecture: masks, positions and whatever else a decoder gives its blocks are made anew in every pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from autolayer.models.fp32 import restore_forward
from autolayer.models.layers import find_layers
from autolayer.training.logprobs import ScoreBatch, log_probs

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Nats by which log-probabilities may differ if they are the same but for rounding; else `NARROW`."""
NARROW = 0.1


class Boundary:
    """What enters one block, for the micro-batches of a batch. Use inside `scoring.scoring`, without gradients.

    Args:
        model: With the weights that the states are to be made by.
        parts: The micro-batches.
        fixed: Never leaves the lowest block, for a model whose blocks exchange more than a hidden state.
    """

    def __init__(self, model: PreTrainedModel, parts: Sequence[ScoreBatch], *, fixed: bool = False) -> None:
        self.model, self.parts, self.fixed = model, tuple(parts), fixed
        self.blocks = find_layers(model)
        self.layer = 0
        self._states: Sequence[torch.Tensor | None] = [None] * len(self.parts)

    def move_to(self, layer: int) -> int:
        """Goes to the input of a block, with the weights now in the model; further down only from the start.

        Returns:
            How many blocks were run on the way.
        """
        if self.fixed or layer == self.layer:
            return 0
        if layer < self.layer:
            self.layer, self._states = 0, [None] * len(self.parts)
        states = [self._until(layer, index) for index in range(len(self.parts))]
        run, self.layer, self._states = layer - self.layer, layer, states
        return run

    def log_probs(self) -> Iterator[torch.Tensor]:
        """As `scoring.log_probs`, one micro-batch after the other."""
        for index, part in enumerate(self.parts):
            with self._entered(index):
                yield log_probs(self.model, part)

    def _until(self, layer: int, index: int) -> torch.Tensor:
        def stop(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with self._entered(index):
                log_probs(self.model, self.parts[index])
        except _Reached as reached:
            return reached.state
        finally:
            handle.remove()
        raise AssertionError(f"the forward pass went around block {layer}")

    def _entered(self, index: int) -> AbstractContextManager[None]:
        """Inside, the blocks below hand on what enters this one."""
        state = self._states[index]
        return nullcontext() if state is None else handing_on(self.blocks[: self.layer], state)


class _Reached(Exception):
    """Ends a forward pass that has come far enough."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def handing_on(blocks: Iterable[torch.nn.Module], state: torch.Tensor) -> Iterator[None]:
    """Inside, these blocks hand on a state instead of computing one."""
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(restore_forward, block, block.__dict__.get("forward"))
            undo.callback(vars(block).update, {name: vars(block)[name] for name in _HOOKS})
            # No hook sees a block that does nothing; in shards, one would gather it.
            vars(block).update({name: OrderedDict() for name in _HOOKS})
            block.forward = lambda *args, **kwargs: state
        yield


def any_batch(model: PreTrainedModel) -> ScoreBatch:
    """Four short sequences, one of them padded, to try a model on."""
    embedding: Any = model.get_input_embeddings()
    ids = torch.arange(64, device=model.device).view(4, 16) % len(embedding.weight)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return ScoreBatch(input_ids=ids, attention_mask=mask, completion_mask=mask)


def can_enter(model: PreTrainedModel, batch: ScoreBatch) -> bool:
    """Whether a pass that begins in the middle says the same as a whole one. Inside `scoring.scoring`.

    Tried on two sequences, with two others in between: a block must not remember something of the last pass. Tried in
    the middle and at the last block: upper blocks may read what some lower one has left (Gemma's shared keys).
    """
    (_, few), *more = batch.split(2)
    others = more[0][1] if more else replace(few, input_ids=few.input_ids.roll(1, dims=1))
    whole, boundary = log_probs(model, few), Boundary(model, [few])
    for layer in (len(boundary.blocks) // 2, len(boundary.blocks) - 1):
        boundary.move_to(layer)
        log_probs(model, others)
        try:
            (entered,) = boundary.log_probs()
        except (KeyError, AttributeError, TypeError):  # what it was to read is not there
            return False
        if not (whole - entered).abs().max() <= TOLERANCE.get(model.dtype, NARROW):
            return False
    return True
