"""The size of forward and backward passes, and what happens when the device runs out of memory.

First a pass takes half as many tokens, again and again. Where that makes passes too small to keep a device busy,
activations are checkpointed (models/activation_checkpointing.py), and passes are large once more.
"""

from __future__ import annotations

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
"""Tokens of a pass, padding included, until the device turns out to be too small for them."""

SMALL = 4096
"""Tokens of a pass below which checkpointing activations is better than a still smaller pass."""

T = TypeVar("T")


def less(tokens: int, checkpointing: bool, longest: int) -> tuple[int, bool] | None:
    """Returns smaller passes than those that did not fit, as their arguments; None if there are none.

    Args:
        tokens: Tokens of a pass so far.
        checkpointing: Whether activations are checkpointed so far.
        longest: Tokens of one sequence.
    """
    if tokens > max(longest, 1 if checkpointing else SMALL):
        return tokens // 2, checkpointing
    return None if checkpointing else (TOKENS, True)


class MicroBatching:
    """The size of all passes of a run, the same on every rank.

    Args:
        engine: Its sequences are halved together with the passes.
        longest: Returns the tokens of the longest sequence there can be.
        process_group: The ranks that make the passes.
        checkpointing: Whether activations are checkpointed from the start.
    """

    def __init__(
        self, engine: Engine, longest: Callable[[], int], process_group: ProcessGroup, *, checkpointing: bool
    ) -> None:
        self.engine, self.longest, self.process_group = engine, longest, process_group
        self.tokens, self.checkpointing = TOKENS, checkpointing

    def sequences(self, width: int) -> int:
        """Returns the number of sequences of this many tokens in one pass."""
        return max(1, self.tokens // width)

    def checkpointed(self, layers: Layers) -> AbstractContextManager[None]:
        """Returns a context that checkpoints activations while these layers are trained, if the run does so."""
        if not self.checkpointing:
            return contextlib.nullcontext()
        return checkpoint_activations(self.engine.model, 0 if layers == "full" else min(layers))

    def within_memory(self, work: Callable[[], T], *, passes_are_collective: bool = False) -> T:
        """Runs some work, and repeats it with passes half as large if a device runs out of memory.

        Call it on every rank. All ranks repeat the work if one of them runs out of memory.

        Args:
            work: The work, which must be repeatable.
            passes_are_collective: True if a pass needs all ranks. A rank that runs out of memory in a pass then ends
                the run, because the others wait for it.

        Returns:
            The result of `work`.

        Raises:
            TrainingError: Not even one sequence fits.
            LoneRankError: A rank ran out of memory in a collective pass.
        """
        while True:
            try:
                with self.process_group.failing_together(passes_are_collective=passes_are_collective):
                    return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            self._reduce(reason)  # outside the except block, where no traceback keeps the tensors alive

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
