"""How much one forward and backward pass takes: a number of tokens, and less where the device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from autolayer.errors import TrainingError
from autolayer.rollouts import TransformersEngine

logger = logging.getLogger(__name__)

TOKENS = 32_768
"""Tokens of a pass, padding included, until the device turns out to be too small for them."""

T = TypeVar("T")


class Passes:
    """The size of all passes of a run.

    Args:
        engine: Generates at most so many sequences at once.
        longest: Tokens of the longest sequence there can be.
    """

    def __init__(self, engine: TransformersEngine, longest: Callable[[], int]) -> None:
        self.engine, self.longest, self.tokens = engine, longest, TOKENS

    def sequences(self, width: int) -> int:
        """Sequences of this many tokens in one pass."""
        return max(1, self.tokens // width)

    def within_memory(self, work: Callable[[], T]) -> T:
        """Does the work, and begins it again with passes half as large where the device runs out of memory.

        Raises:
            TrainingError: Not even one sequence fits.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            self._halve(reason)  # out here, where no traceback holds the tensors any more

    def _halve(self, reason: str) -> None:
        longest, device = self.longest(), self.engine.model.device
        if self.tokens <= longest:
            raise TrainingError(
                f"one sequence of {longest} tokens does not fit into the memory of {device} ({reason}): give a smaller "
                "--max-new-tokens, --recompute, higher --layers, or a device with more."
            )
        self.tokens //= 2
        self.engine.max_sequences = max(1, self.engine.max_sequences // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("%s: going on with at most %d tokens in a pass.", reason, self.tokens)
