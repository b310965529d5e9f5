"""The context handed to every probe: the shared batch, its gradients, and measurements shared between probes."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from autolayer.core.probe_plan import ProbePlan, response_layers
from autolayer.probes.gradient import Gradient, inner, streamed_gradient
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
    plan: ProbePlan
    """Number of prompts and folds that each measurement may use."""
    seed: int
    notes: list[str] = field(default_factory=list)
    """What a user should know about this probing: which probes do not apply, and why."""

    @cached_property
    def gradients(self) -> list[Gradient]:
        """Gradient of the expected reward on each fold alone: one backward pass over the shared batch."""
        return [streamed_gradient(self.bench, fold.batch, fold.advantages_B, self.layers) for fold in self.folds]

    def direction(self, layer: int, without: int) -> Direction:
        """Returns the sign of the gradient on all folds but the one at index `without`, on which it can be judged.

        It is the direction of Adam's first step (arXiv 1412.6980).
        """
        first, *others = [gradient[layer] for fold, gradient in enumerate(self.gradients) if fold != without]
        return {
            name: sum((other[name].float() for other in others), part.float()).sign() for name, part in first.items()
        }

    @cached_property
    def steps(self) -> StepResponses:
        """Measures the policy's response to a step of one layer."""
        return StepResponses(self.bench, self.folds)

    @cached_property
    def responses(self) -> dict[int, list[StepResponse]]:
        """Responses to a step of each of the measured layers on the planned folds; none where there is no gradient."""
        return {layer: self._responses(layer) for layer in response_layers(self.layers, self.plan.response_layers)}

    def deviation(self, layer: int) -> float:
        """Returns the mean over folds of `StepResponse.deviation`; 0 for a layer that moves nothing."""

        def mean(responses: list[StepResponse]) -> float:
            deviations = [response.deviation for response in responses if response.deviation > 0]
            return sum(deviations) / len(deviations) if deviations else 0.0

        return self._between(layer, mean)

    @cached_property
    def sign_gains(self) -> dict[int, list[float]]:
        """First-order gain on each fold of a sign step along the other folds' direction, per unit of step."""
        return {
            layer: [
                inner(self.direction(layer, without=fold), gradient[layer])
                for fold, gradient in enumerate(self.gradients)
            ]
            for layer in self.layers
        }

    @cached_property
    def gains_per_kl(self) -> dict[int, list[float]]:
        """The sign gains per unit of `deviation`; 0 if nothing moves."""
        deviations = {layer: self.deviation(layer) for layer in self.layers}
        return {
            layer: [gain / deviations[layer] if deviations[layer] > 0 else 0.0 for gain in gains]
            for layer, gains in self.sign_gains.items()
        }

    def reaches(self, layer: int) -> list[float]:
        """Returns the `StepResponse.reaches` of all folds in one list; zeros for a layer that moves nothing."""
        count = max((len(_reaches(each)) for each in self.responses.values()), default=0) or 2

        def sample(responses: list[StepResponse], index: int) -> float:
            reaches = _reaches(responses)
            return reaches[index % len(reaches)] if reaches else 0.0

        return [self._between(layer, partial(sample, index=index)) for index in range(count)]

    def distance_step(self, layer: int) -> float:
        """Returns the sign step that takes the policy `TARGET_DISTANCE` from the base; 0 where nothing moves."""

        def mean(responses: list[StepResponse]) -> float:
            steps = [response.distance_step for response in responses if response.distance_step > 0]
            return statistics.geometric_mean(steps) if steps else 0.0

        return self._between(layer, mean)

    def _between(self, layer: int, value_of: Callable[[list[StepResponse]], float]) -> float:
        """Returns a value of a layer's responses; between measured layers, their geometric interpolation in depth."""
        if layer in self.responses:
            return value_of(self.responses[layer])
        known = {depth: value for depth, found in self.responses.items() if (value := value_of(found)) > 0}
        if not known or not self._folds_with_direction(layer):
            return 0.0
        return float(np.exp(np.interp(layer, list(known), np.log(list(known.values())))))

    def _folds_with_direction(self, layer: int) -> list[int]:
        """Returns the folds without which the layer still has a gradient."""
        has = [any(bool(part.any()) for part in gradient[layer].values()) for gradient in self.gradients]
        return [fold for fold in range(len(has)) if any(has[:fold] + has[fold + 1 :])]

    def _responses(self, layer: int) -> list[StepResponse]:
        return [
            self.steps.measure(layer, fold, self.direction(layer, without=fold), self.plan.response_prompts)
            for fold in self._folds_with_direction(layer)[: self.plan.response_folds]
        ]


def _reaches(responses: list[StepResponse]) -> list[float]:
    return [reach for response in responses for reach in response.reaches]
