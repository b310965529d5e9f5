"""What a probe has to beat: choices that know nothing of the task. Ordinary probes, shown in every table."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from autolayer.core.depth_prior import POSITIONS
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class Position(Probe):
    """Scores a layer by its depth alone. Costs nothing; fails whenever the best depth depends on the task.

    Formula: score_l = f(l / (L - 1)), shape (candidates,). Source: on the one published curve (Qwen3-1.7B, arXiv
    2607.01232) closeness to depth .40 alone reaches Spearman .76; on small models `last` is hard to beat.
    """

    is_baseline = True

    def __init__(self, value: Callable[[int, int], float]) -> None:
        self.value = value

    def score(self, context: ProbeContext) -> Scores:
        count = len(context.bench.layers)
        return Scores(scores_L=np.array([self.value(layer, count) for layer in context.layers], dtype=float))


class Random(Probe):
    """Scores drawn from the run's seed: what no knowledge at all gives. Shape (candidates,), no cost."""

    is_baseline = True

    def score(self, context: ProbeContext) -> Scores:
        generator = random.Random(f"{context.seed}-random-baseline")
        return Scores(scores_L=np.array([generator.random() for _ in context.layers]))


FIRST, MIDDLE, LAST = (Position(POSITIONS[name]) for name in ("first", "middle", "last"))
POSITION = Position(POSITIONS["position"])
"""The published rule; `compare` judges every prediction by it."""
