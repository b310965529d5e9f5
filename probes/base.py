"""What a probe is: one score per candidate layer, higher meaning more contribution.

To add one: subclass `Probe` in a file of its own, say in the docstring what it measures, its formula, source, cost
and when it is known to fail, and list it in `autolayer.probes.PROBES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from autolayer.probes.context import ProbeContext


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One probe's answer, arrays of shape (candidates,)."""

    scores_L: np.ndarray
    """Finite; higher means more contribution. Units are the probe's own."""
    errors_L: np.ndarray | None = None
    """Standard errors; None where the probe measures nothing (a baseline)."""

    @property
    def reliability(self) -> float:
        """Share of the scores' variance over layers that is not noise, between 0 and 1."""
        variance = float(self.scores_L.var(ddof=1)) if len(self.scores_L) > 1 else 0.0
        if self.errors_L is None or variance <= 0:
            return 0.0
        return max(0.0, 1 - float(np.square(self.errors_L).mean()) / variance)

    @classmethod
    def of_samples(cls, samples_L: Sequence[Sequence[float]]) -> Scores:
        """Mean and standard error from several independent estimates for each layer."""
        return cls(
            scores_L=np.array([np.mean(samples) for samples in samples_L], dtype=float),
            errors_L=np.array([np.std(samples, ddof=1) / np.sqrt(len(samples)) for samples in samples_L], dtype=float),
        )


class Probe(ABC):
    """A cheap signal about every layer."""

    is_baseline: ClassVar[bool] = False
    """Knows nothing of the task: shown beside the others, never part of the prediction."""

    @abstractmethod
    def score(self, context: ProbeContext) -> Scores | None:
        """Scores the candidates.

        Args:
            context: The shared batch, its gradients and the workbench. Weights, `requires_grad`, hooks and the
                random state are as before when this returns.

        Returns:
            The scores, in the candidates' order; None if the plan leaves this probe out.
        """
