"""The context handed to every probe: the shared batch, its gradients, and measurements shared between probes."""

import statistics
from dataclasses import dataclass, field
from functools import cached_property

from autolayer.core.probe_plan import ProbePlan
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
        """Responses to a step of each layer on the planned folds; none for a layer without a gradient."""
        return {layer: self._responses(layer) for layer in self.layers}

    def deviation(self, layer: int) -> float:
        """Returns the mean over folds of `StepResponse.deviation`; 0 for a layer that moves nothing."""
        deviations = [response.deviation for response in self.responses[layer] if response.deviation > 0]
        return sum(deviations) / len(deviations) if deviations else 0.0

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
        return [reach for response in self.responses[layer] for reach in response.reaches] or [0.0, 0.0]

    def distance_step(self, layer: int) -> float:
        """Returns the sign step that takes the policy `TARGET_DISTANCE` from the base; 0 where nothing moves."""
        steps = [response.distance_step for response in self.responses[layer] if response.distance_step > 0]
        return statistics.geometric_mean(steps) if steps else 0.0

    def _responses(self, layer: int) -> list[StepResponse]:
        has = [any(bool(part.any()) for part in gradient[layer].values()) for gradient in self.gradients]
        with_direction = [fold for fold in range(len(has)) if any(has[:fold] + has[fold + 1 :])]
        return [
            self.steps.measure(layer, fold, self.direction(layer, without=fold), self.plan.response_prompts)
            for fold in with_direction[: self.plan.response_folds]
        ]
