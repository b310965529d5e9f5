"""The context handed to every probe: the shared batch, its gradients, and measurements shared between probes."""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from autolayer.core.probe_plan import ProbePlan
from autolayer.probes.gradient import Gradient, inner
from autolayer.probes.shared_backward import FoldGradients, ProjectedGradients, projected_gradients, shared_backward
from autolayer.probes.shared_batch import Fold
from autolayer.probes.step_response import Direction, StepResponse, StepResponses
from autolayer.training.workbench import Workbench


@dataclass
class ProbeContext:
    """Everything a probe may look at. What several probes need is computed on first use and kept."""

    bench: Workbench
    """Workbench with the base weights loaded."""
    layers: tuple[int, ...]
    """The candidates, in the order of every score array."""
    folds: list[Fold]
    """The shared batch."""
    plan: ProbePlan
    """Number of prompts and folds that each measurement may use."""
    seed: int
    """The run's seed."""
    _responses: dict[int, list[StepResponse]] = field(default_factory=dict)
    _gains: dict[int, list[float]] = field(default_factory=dict)

    @cached_property
    def fold_gradients(self) -> list[FoldGradients]:
        """The results of the one backward pass over the shared batch, fold by fold."""
        return shared_backward(self.bench, self.folds, self.layers)

    @property
    def gradients(self) -> list[Gradient]:
        """Gradient of the expected reward on each fold alone."""
        return [found.gradient for found in self.fold_gradients]

    def projected_gradients(self, layer: int) -> ProjectedGradients:
        """Returns the randomly projected gradient of every completion of the shared batch by one layer."""
        return projected_gradients(self.folds, self.fold_gradients, layer)

    def direction(self, layer: int, without: int) -> Direction:
        """Returns the sign of the gradient on all folds but one: Adam's first step (arXiv 1412.6980).

        Args:
            layer: A candidate layer.
            without: Index of the fold that is left out, on which the direction can then be judged.
        """
        first, *others = [gradient[layer] for fold, gradient in enumerate(self.gradients) if fold != without]
        return {
            name: sum((other[name].float() for other in others), part.float()).sign() for name, part in first.items()
        }

    @cached_property
    def steps(self) -> StepResponses:
        """Scores the shared batch while one layer is moved."""
        return StepResponses(self.bench, self.folds)

    def responses(self, layer: int) -> list[StepResponse]:
        """Returns the responses to a step of a layer on the planned folds; none for a layer without a gradient."""
        if layer not in self._responses:
            self._responses[layer] = [
                self.steps.measure(layer, fold, self.direction(layer, without=fold), self.plan.response_prompts)
                for fold in itertools.islice(self._folds_with_direction(layer), self.plan.response_folds)
            ]
        return self._responses[layer]

    def deviation(self, layer: int) -> float:
        """Returns the mean over folds of `StepResponse.deviation`; 0 for a layer that moves nothing."""
        deviations = [response.deviation for response in self.responses(layer) if response.deviation > 0]
        return sum(deviations) / len(deviations) if deviations else 0.0

    def gains_per_kl(self, layer: int) -> list[float]:
        """Returns the first-order gain of the other folds' direction on each fold, per unit of `deviation`.

        Zeros for a layer that moves nothing.
        """
        if layer not in self._gains:
            deviation = self.deviation(layer)
            self._gains[layer] = [
                inner(self.direction(layer, without=fold), gradient[layer]) / deviation if deviation > 0 else 0.0
                for fold, gradient in enumerate(self.gradients)
            ]
        return self._gains[layer]

    def reaches(self, layer: int) -> list[float]:
        """Returns the `StepResponse.reaches` of all folds in one list; zeros for a layer that moves nothing."""
        return [reach for response in self.responses(layer) for reach in response.reaches] or [0.0, 0.0]

    def distance_step(self, layer: int) -> float:
        """Returns the sign step that takes the policy `TARGET_DISTANCE` from the base; 0 where nothing moves."""
        steps = [response.distance_step for response in self.responses(layer) if response.distance_step > 0]
        return statistics.geometric_mean(steps) if steps else 0.0

    def _folds_with_direction(self, layer: int) -> Iterator[int]:
        """Yields the folds for which the others have a gradient; none where the layer has no gradient at all."""
        has = [any(bool(g.any()) for g in gradient[layer].values()) for gradient in self.gradients]
        return (fold for fold in range(len(self.folds)) if any(has[:fold] + has[fold + 1 :]))
