"""The contract of a probe: one score per candidate layer, where higher means more contribution.

To add a probe:

1. Write `probes/<name>.py` with one subclass of `Probe`. Its docstring says what the probe measures, and has the
   entries Formula, Shape, Source, Cost, Measured and Known to fail.
2. Add one line to `PROBES` in `probes/__init__.py`.

tests/probes/test_probes.py then holds it to the contract: finite scores, the same for the same seed, and a model left
as it was. Every table shows it. The prediction is made from
`predictor.SIGNAL` for small models, and for others by pretrained.py.
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
    """The scores of one probe, in arrays of shape (candidates,)."""

    scores_L: np.ndarray
    """Finite; higher means more contribution. Units are the probe's own."""
    errors_L: np.ndarray | None = None
    """Standard errors; None where the probe measures nothing (a baseline)."""

    @property
    def reliability(self) -> float:
        """Share of the scores' variance over layers that is not noise, between 0 and 1; 0 without errors."""
        variance = float(self.scores_L.var(ddof=1)) if len(self.scores_L) > 1 else 0.0
        if self.errors_L is None or variance <= 0:
            return 0.0
        return max(0.0, 1 - float(np.square(self.errors_L).mean()) / variance)

    @classmethod
    def of_samples(cls, samples_L: Sequence[Sequence[float]]) -> Scores:
        """Returns the mean and standard error of two or more independent estimates for each candidate."""
        return cls(
            scores_L=np.array([np.mean(samples) for samples in samples_L], dtype=float),
            errors_L=np.array([np.std(samples, ddof=1) / np.sqrt(len(samples)) for samples in samples_L], dtype=float),
        )


class Probe(ABC):
    """Base class of all probes: a signal about every layer that costs little beside training it."""

    is_baseline: ClassVar[bool] = False
    """True if the probe ignores the task. It is reported but never used for the prediction."""

    needs_gradients: ClassVar[bool] = True
    """False if the probe works where the plan has no gradients (`ProbePlan.fold_prompts` is 0)."""

    @abstractmethod
    def score(self, context: ProbeContext) -> Scores | None:
        """Scores the candidates.

        Args:
            context: The shared batch, its gradients and the workbench. The probe leaves weights, `requires_grad`,
                hooks and the random state as they were.

        Returns:
            The scores in the order of `context.layers`, or None if `context.plan` leaves this probe out.
        """
