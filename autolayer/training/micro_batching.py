"""Splits batches into micro-batches, and makes them smaller when the device runs out of memory.

A micro-batch is the set of sequences of one forward and backward pass. After running out of memory, its size is halved,
repeatedly. If it would become too small to keep a device busy, activation checkpointing is switched on instead
(models/activation_checkpointing.py), and the size starts again at `TOKENS`.
"""

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from autolayer.core.errors import TrainingError
from autolayer.core.layer_set import Layers
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.activation_checkpointing import checkpoint_activations
from autolayer.rollouts.engines.base import Engine

logger = logging.getLogger(__name__)

TOKENS = 32_768
"""Tokens of a pass, padding included, before the device has run out of memory."""

SMALL = 4096
"""Tokens of a pass below which activation checkpointing is better than an even smaller pass."""

T = TypeVar("T")


def less(tokens: int, checkpointing: bool, longest: int) -> tuple[int, bool] | None:
    """Returns the next smaller size of passes after one that did not fit.

    Args:
        tokens: Tokens of the pass that did not fit.
        checkpointing: True if its activations were checkpointed.
        longest: Tokens of the longest sequence.

    Returns:
        The new `tokens` and `checkpointing`; None if a checkpointed pass over one sequence did not fit.
    """
    if tokens > max(longest, 1 if checkpointing else SMALL):
        return tokens // 2, checkpointing
    return None if checkpointing else (TOKENS, True)


class MicroBatching:
    """Holds the size of all passes of a run, the same on every rank.

    Args:
        engine: The rollout engine; `max_sequences`, which it generates at once, is halved together with the passes.
        longest: Returns the number of tokens of the longest sequence.
        process_group: The ranks that make the passes.
        checkpointing: True to checkpoint activations from the start.
    """

    def __init__(
        self, engine: Engine, longest: Callable[[], int], process_group: ProcessGroup, *, checkpointing: bool
    ) -> None:
        self.engine, self.longest, self.process_group = engine, longest, process_group
        self.tokens, self.checkpointing = TOKENS, checkpointing

    def sequences(self, width: int) -> int:
        """Returns the number of sequences in one pass if each has `width` tokens; at least 1."""
        return max(1, self.tokens // width)

    def checkpointed(self, layers: Layers) -> AbstractContextManager[None]:
        """Returns a context for training these layers, which checkpoints activations if `checkpointing` is on."""
        if not self.checkpointing:
            return contextlib.nullcontext()
        return checkpoint_activations(self.engine.model, 0 if layers == "full" else min(layers))

    def within_memory(self, work: Callable[[], T], *, passes_are_collective: bool = False) -> T:
        """Runs some work, and repeats it with smaller passes if a device runs out of memory.

        Call it on every rank. If one rank runs out of memory, all ranks repeat the work.

        Args:
            work: The work; repeating it from the start must give the same result.
            passes_are_collective: True if a forward pass needs all ranks. A rank that runs out of memory then ends the
                run, because the other ranks wait for it in the pass.

        Returns:
            The result of `work`.

        Raises:
            TrainingError: Not even one sequence fits into memory.
            LoneRankError: A rank ran out of memory in a collective pass.
        """
        while True:
            try:
                with self.process_group.failing_together(passes_are_collective=passes_are_collective):
                    return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            self._reduce(reason)  # outside the except block, whose traceback keeps the tensors alive

    def _reduce(self, reason: str) -> None:
        longest, device = self.longest(), self.engine.model.device
        found = less(self.tokens, self.checkpointing, longest)
        if found is None:
            raise TrainingError(
                f"one sequence of {longest} tokens does not fit into the memory of {device} ({reason}): give a smaller "
                "--max-new-tokens, higher --layers, a device with more, or several with --shard."
            )
        self.tokens, self.checkpointing = found
        self.engine.max_sequences = max(1, self.engine.max_sequences // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        how = ", activations checkpointed" if self.checkpointing else ""
        logger.warning("%s: continuing with at most %d tokens in a pass%s.", reason, self.tokens, how)
