"""How much one forward and backward pass takes and keeps: less where the device runs out of memory.

First a pass takes half as many tokens, again and again. Where that makes passes too small to keep a device busy,
activations are recomputed instead of kept (recompute.py), and passes are large once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from autolayer.core.errors import TrainingError
from autolayer.rollouts.engines.base import Engine

logger = logging.getLogger(__name__)

TOKENS = 32_768
"""Tokens of a pass, padding included, until the device turns out to be too small for them."""

SMALL = 4096
"""Tokens of a pass below which recomputing activations is better than a still smaller pass."""

T = TypeVar("T")


def less(tokens: int, recompute: bool, longest: int) -> tuple[int, bool] | None:
    """What passes take and whether they recompute, where so much did not fit; None if there is nothing less.

    Args:
        tokens: Of a pass so far.
        recompute: So far.
        longest: Tokens of one sequence.
    """
    if tokens > max(longest, 1 if recompute else SMALL):
        return tokens // 2, recompute
    return None if recompute else (TOKENS, True)


class Passes:
    """The size of all passes of a run.

    Args:
        engine: Generates at most so many sequences at once.
        longest: Tokens of the longest sequence there can be.
        recompute: From the start.
    """

    def __init__(self, engine: Engine, longest: Callable[[], int], *, recompute: bool) -> None:
        self.engine, self.longest, self.tokens, self.recompute = engine, longest, TOKENS, recompute

    @property
    def sizes(self) -> tuple[int, bool, int]:
        """All that `within_memory` makes smaller, for other processes to follow."""
        return self.tokens, self.recompute, self.engine.max_sequences

    @sizes.setter
    def sizes(self, sizes: tuple[int, bool, int]) -> None:
        self.tokens, self.recompute, self.engine.max_sequences = sizes

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
            self._take_less(reason)  # out here, where no traceback holds the tensors any more

    def _take_less(self, reason: str) -> None:
        longest, device = self.longest(), self.engine.model.device
        found = less(self.tokens, self.recompute, longest)
        if found is None:
            raise TrainingError(
                f"one sequence of {longest} tokens does not fit into the memory of {device} ({reason}): give a smaller "
                "--max-new-tokens, higher --layers, a device with more, or several with --shard."
            )
        self.tokens, self.recompute = found
        self.engine.max_sequences = max(1, self.engine.max_sequences // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        how = ", activations recomputed" if self.recompute else ""
        logger.warning("%s: going on with at most %d tokens in a pass%s.", reason, self.tokens, how)
