"""Repeats work with smaller micro-batches when a device runs out of memory.

A micro-batch is the set of sequences of one forward and backward pass. Each time memory runs out, its size is halved.
If it would become too small to keep a device busy, activation checkpointing is switched on instead
(models/activation_checkpointing.py), and the size starts again at `TOKENS`.
"""

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from autolayer.core.errors import TrainingError
from autolayer.core.layer_set import Layers
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.activation_checkpointing import checkpoint_activations
from autolayer.rollouts.engines.base import Engine

logger = logging.getLogger(__name__)

TOKENS = 32_768
"""Tokens of a micro-batch, padding included, before the device has run out of memory."""

SMALL = 4096
"""Tokens of a micro-batch below which activation checkpointing is better than an even smaller one."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class MicroBatchSize:
    """The size of all micro-batches of a run."""

    tokens: int
    """Largest number of tokens, padding included; a micro-batch has at least one sequence."""
    checkpointing: bool
    """True if activations are recomputed in the backward pass."""

    def smaller(self, longest: int) -> "MicroBatchSize | None":
        """Returns the next smaller size; None if this is one sequence of `longest` tokens with checkpointing."""
        if self.tokens > max(longest, 1 if self.checkpointing else SMALL):
            return MicroBatchSize(tokens=self.tokens // 2, checkpointing=self.checkpointing)
        return None if self.checkpointing else MicroBatchSize(tokens=TOKENS, checkpointing=True)


class MicroBatching:
    """Holds the size of the micro-batches, the same on every rank, and reduces it when memory runs out.

    The engine's `max_sequences`, which it generates at once, is halved together with the size. `longest` returns the
    number of tokens of the longest sequence.
    """

    def __init__(
        self, engine: Engine, longest: Callable[[], int], process_group: ProcessGroup, *, checkpointing: bool
    ) -> None:
        self.engine, self.longest, self.process_group = engine, longest, process_group
        self.size = MicroBatchSize(tokens=TOKENS, checkpointing=checkpointing)

    def sequences(self, width: int) -> int:
        """Returns the number of sequences of `width` tokens in one micro-batch; at least 1."""
        return max(1, self.size.tokens // width)

    def checkpointed(self, layers: Layers) -> AbstractContextManager[None]:
        """Returns a context for training these layers, which checkpoints activations if the size says so."""
        if not self.size.checkpointing:
            return contextlib.nullcontext()
        return checkpoint_activations(self.engine.model, 0 if layers == "full" else min(layers))

    def retry_on_out_of_memory(self, work: Callable[[], T], *, passes_need_all_ranks: bool = False) -> T:
        """Runs some work, and repeats it on all ranks, with smaller micro-batches, if any of them runs out of memory.

        Call it on every rank. Repeated from the start, the work must give the same result. If `passes_need_all_ranks`,
        a rank that runs out of memory ends the run (LoneRankError), because the others wait for it in the pass.
        """
        while True:
            try:
                with self.process_group.failing_together(passes_need_all_ranks=passes_need_all_ranks):
                    return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            self._reduce(reason)  # outside the except block, whose traceback keeps the tensors alive

    def _reduce(self, reason: str) -> None:
        longest, device = self.longest(), self.engine.model.device
        smaller = self.size.smaller(longest)
        if smaller is None:
            raise TrainingError(
                f"one sequence of {longest} tokens does not fit into the memory of {device} ({reason}): give a smaller "
                "--max-new-tokens, higher --layers, a device with more, or several with --shard."
            )
        self.size = smaller
        self.engine.max_sequences = max(1, self.engine.max_sequences // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        how = ", activations checkpointed" if smaller.checkpointing else ""
        logger.warning("%s: continuing with at most %d tokens in a pass%s.", reason, smaller.tokens, how)
