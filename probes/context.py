"""What all probes share: one batch in folds, one backward pass over it, and the response to a small step.

A direction is never judged on the fold that it was taken from: there every layer would look good.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from autolayer.core.budget import RESPONSE_GROUP, ProbePlan
from autolayer.distributed.fsdp import whole
from autolayer.models.layers import fp32_layers
from autolayer.probes.gradient import Gradient, inner, streamed_gradient
from autolayer.probes.gradient_projection import GradientProjector
from autolayer.rollouts.types import Rollouts
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.partial_forward import Boundary
from autolayer.training.workbench import Workbench

# P prompts, G completions of a group, B = P * G sequences, T tokens, D hidden width, L candidate layers.

UNIT_STEP = 1e-4
"""First trial step, as a share of the layer's root mean square weight."""
RESPONSE_DEVIATION = 0.1
"""Deviation of the sequence log-ratio (nats) at which responses are measured: a KL of .005."""
MAX_SIZES, MAX_GROWTH = 4, 1000.0
"""Trial steps, and the factor between two of them. In bf16 rounding hides a small step, so it takes several."""
TARGET_DISTANCE = 1.5
"""Root mean square of the sequence log-ratio (nats) at which `StepResponse.reaches` is read: a KL of about 1."""
NUM_DISTANCE_STEPS, MAX_REACH = 3, 10.0
"""Steps tried on the way there, and how far from 1 a reach may be."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One part of the shared batch."""

    rollouts: Rollouts
    batch: ScoreBatch
    advantages_B: torch.Tensor
    """Unbiased group advantages, (r - mean) * G / (G - 1): their gradient is that of the expected reward."""


@dataclass(frozen=True, kw_only=True)
class ProjectedGradients:
    """Gradients of log pi(completion) by one layer, as sketches, for the completions that have an advantage."""

    rows_B_D: torch.Tensor
    """float64; D numbers each, not the hidden width."""
    advantages_B: torch.Tensor
    prompt_B: torch.Tensor
    """Which prompt of the shared batch each belongs to."""


@dataclass(frozen=True, kw_only=True)
class StepResponse:
    """How the policy answers, on one fold, a small step along the direction that the other folds give."""

    deviation: float
    """Standard deviation over sequences of the log-ratio per unit of step. For a small step the KL divergence is half
    the square of step times deviation."""
    movement_B_D: torch.Tensor
    """Change of the final hidden state per unit of step, averaged over the completion's tokens, (B, D)."""
    fold: Fold
    far: float = 0.0
    """The step at which the log-ratio is `TARGET_DISTANCE`; 0 for a layer that moves nothing."""
    reaches: tuple[float, ...] = ()
    """That step, over what the response to a small step promises: below 1 where the policy moves away faster than in
    proportion to the step. One value by each half of the prompts."""


@dataclass
class ProbeContext:
    """Everything a probe may look at."""

    bench: Workbench
    layers: tuple[int, ...]
    """Candidates, in the order of every score array."""
    folds: list[Fold]
    plan: ProbePlan
    seed: int
    _responses: dict[int, list[StepResponse]] = field(default_factory=dict)
    _gains: dict[int, list[float]] = field(default_factory=dict)
    _judged: dict[tuple[int, int, int], tuple[Fold, Boundary]] = field(default_factory=dict)

    @cached_property
    def _passes(self) -> list[tuple[Gradient, GradientProjector]]:
        """One backward pass over the shared batch in all: each fold's gradient, and sketches of its completions'."""
        passes = []
        for fold in self.folds:
            projector = GradientProjector(self.bench.model, self.layers)
            with projector.watching():
                gradient = streamed_gradient(self.bench, fold.batch, fold.advantages_B, self.layers)
            passes.append((gradient, projector))
        return passes

    @property
    def gradients(self) -> list[Gradient]:
        """Gradient of the expected reward by each fold alone."""
        return [gradient for gradient, _ in self._passes]

    def projected_gradients(self, layer: int) -> ProjectedGradients:
        """The whole shared batch as one layer sees it.

        The backward pass weighs each completion with its advantage; dividing by it gives the completion's own
        gradient, so those without one are left out, as they are from every gradient.
        """
        rows, advantages, prompts, first = [], [], [], 0
        for fold, (_, projector) in zip(self.folds, self._passes, strict=True):
            count, group_size = len(fold.advantages_B), fold.rollouts.group_size
            has = fold.advantages_B != 0
            rows_B_D = projector.rows(layer).double()
            if not rows_B_D.numel():
                rows_B_D = torch.zeros(count, 1, dtype=torch.float64)
            rows.append(rows_B_D[has] * (count / fold.advantages_B[has].double())[:, None])
            advantages.append(fold.advantages_B[has].double())
            prompts.append((torch.arange(count) // group_size + first)[has])
            first += count // group_size
        return ProjectedGradients(
            rows_B_D=torch.cat(rows), advantages_B=torch.cat(advantages), prompt_B=torch.cat(prompts)
        )

    def direction(self, layer: int, without: int) -> dict[str, torch.Tensor]:
        """Sign of the gradient by all folds but one: what Adam's first step does (arXiv 1412.6980)."""
        others = [gradient[layer] for index, gradient in enumerate(self.gradients) if index != without]
        return {name: sum(other[name].float() for other in others).sign() for name in others[0]}  # pyright: ignore

    def _moving(self, layer: int) -> Iterator[int]:
        """Folds for which the others give a direction: none where no gradient reaches the layer at all."""
        has = [any(bool(g.any()) for g in gradient[layer].values()) for gradient in self.gradients]
        return (fold for fold in range(len(self.folds)) if any(has[:fold] + has[fold + 1 :]))

    @contextlib.contextmanager
    def stepped(self, layer: int, direction: dict[str, torch.Tensor], size: float) -> Iterator[None]:
        """The model with `layer` moved by size * direction; inside `fp32_layers` of that layer only.

        A bf16 layer would swallow most of such a step (shown in arXiv 2511.08567 and for 5e-6 sign steps).
        """
        model = self.bench.model
        before = {name: model.get_parameter(name).detach().clone() for name in direction}
        try:
            with torch.no_grad():
                for name, step in direction.items():
                    parameter = model.get_parameter(name)
                    parameter.add_(step.to(parameter.device, parameter.dtype), alpha=size)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    model.get_parameter(name).copy_(tensor)

    def judged(self, layer: int, fold: int, prompts: int, completions: int) -> tuple[Fold, Boundary]:
        """Some of a fold's rollouts, and how to score them again and again with only one layer changed.

        Inside `scoring`, with the base weights in. Layers are best asked for from the lowest up: what enters one is
        made from what entered the one before.
        """
        key = (fold, prompts, completions)
        if key not in self._judged:
            part = make_fold(self.bench, self.folds[fold].rollouts[:prompts].thinned(completions))
            self._judged[key] = part, self.bench.boundary(part.batch)
        self.bench.raise_boundary(self._judged[key][1], layer)
        return self._judged[key]

    def sequence_log_probs(self, batch: ScoreBatch | Boundary) -> torch.Tensor:
        """Log-probability of each whole completion, (B,), in float64."""
        return self.bench.log_probs(batch).double().sum(1)

    def responses(self, layer: int) -> list[StepResponse]:
        """The response of a layer to a small step, on the planned folds; nothing for a dead layer."""
        if layer not in self._responses:
            self._responses[layer] = [
                self._respond(layer, fold) for fold in itertools.islice(self._moving(layer), self.plan.response_folds)
            ]
        return self._responses[layer]

    def deviation(self, layer: int) -> float:
        """Mean over folds of `StepResponse.deviation`; 0 for a layer that moves nothing."""
        deviations = [response.deviation for response in self.responses(layer) if response.deviation > 0]
        return sum(deviations) / len(deviations) if deviations else 0.0

    def gains_per_kl(self, layer: int) -> list[float]:
        """The first-order gain of the other folds' direction on each fold, per unit of `deviation`; else zeros."""
        if layer not in self._gains:
            deviation = self.deviation(layer)
            self._gains[layer] = [
                inner(self.direction(layer, without=fold), gradient[layer]) / deviation if deviation > 0 else 0.0
                for fold, gradient in enumerate(self.gradients)
            ]
        return self._gains[layer]

    def reaches(self, layer: int) -> list[float]:
        """All of `StepResponse.reaches`; zeros for a layer that moves nothing."""
        return [reach for response in self.responses(layer) for reach in response.reaches] or [0.0, 0.0]

    def far(self, layer: int) -> float:
        """The step along the gradient's sign that takes the policy `TARGET_DISTANCE` away; 0 for a dead layer."""
        steps = [response.far for response in self.responses(layer) if response.far > 0]
        return statistics.geometric_mean(steps) if steps else 0.0

    def _respond(self, layer: int, fold: int) -> StepResponse:
        """The response on the planned prompts; on more where they cannot tell how the policy deviates.

        Their completions may be all alike, or two estimates have nothing in common: in bf16 that is rounding, on few
        completions curvature. If all of the fold disagrees as well, one estimate is taken: a layer that moves the
        policy is not taken for dead.
        """
        prompts, have = self.plan.response_prompts, len(self.folds[fold].rollouts.rewards_P_G())
        while True:
            response = self._respond_on(layer, fold, prompts, alone=prompts >= have)
            if response.deviation > 0 or prompts >= have:
                return response
            prompts *= 2

    def _respond_on(self, layer: int, fold: int, prompts: int, alone: bool) -> StepResponse:
        """Finds the step that moves the policy by `RESPONSE_DEVIATION`."""
        bench, direction = self.bench, self.direction(layer, without=fold)
        with ExitStack() as inside:
            inside.enter_context(whole(bench.model, (layer,)))
            size = UNIT_STEP * rms(bench.model.get_parameter(name) for name in direction)
            inside.enter_context(scoring(bench.model, bench.engine.temperature))
            inside.enter_context(torch.no_grad())
            judged, boundary = self.judged(layer, fold, prompts, RESPONSE_GROUP)
            inside.enter_context(fp32_layers(bench.model, (layer,)))
            states = inside.enter_context(final_states(bench.model, judged.batch))

            def at(step: float) -> torch.Tensor:
                with self.stepped(layer, direction, step):
                    return self.sequence_log_probs(boundary)

            before_B, state_B_D = self.sequence_log_probs(boundary), take(states)
            for _ in range(MAX_SIZES):
                smaller, smaller_B = size, at(size)
                take(states)
                reached = float((smaller_B - before_B).std())
                if reached == 0:
                    break
                size *= min(MAX_GROWTH, RESPONSE_DEVIATION / reached)
                if smaller / 2 < size < 2 * smaller:  # two estimates of one slope need two steps of about one size
                    break
            after_B, moved_B_D = at(size), take(states)
            # Two estimates that share no forward pass: what rounding adds to one is not in the other.
            ratios_2_B = torch.stack([(after_B - before_B) / size, (smaller_B - at(-size)) / (smaller + size)])
            deviation = max(0.0, float(torch.cov(ratios_2_B)[0, 1])) ** 0.5
            if deviation == 0 and alone:
                deviation = float(ratios_2_B[0].std())
            far, reaches = 0.0, ()
            if deviation > 0:
                half_B = torch.arange(len(before_B)) // judged.rollouts.group_size % 2

                def by_half(log_ratios_B: torch.Tensor) -> list[float]:
                    squares_B = log_ratios_B.square().cpu()
                    return [float(squares_B[half_B == half].mean()) ** 0.5 for half in half_B.unique()]

                far, steps = find_distance_steps(lambda step: by_half(at(step) - before_B), TARGET_DISTANCE / deviation)
                small = by_half(ratios_2_B.mean(0))
                reaches = tuple(step * slope / TARGET_DISTANCE for step, slope in zip(steps, small, strict=True))
                take(states)
        movement_B_D = (moved_B_D - state_B_D) / size
        return StepResponse(deviation=deviation, movement_B_D=movement_B_D, fold=judged, far=far, reaches=reaches)


def find_distance_steps(
    moved_at: Callable[[float], Sequence[float]], promised: float
) -> tuple[float, tuple[float, ...]]:
    """The steps that move the policy by `TARGET_DISTANCE`.

    Args:
        moved_at: Root mean square of the log-ratio over the base's own completions after a step, by each part of them.
            Half its square estimates the KL divergence, without importance weights (k2 of
            joschu.net/blog/kl-approx.html).
        promised: The step that would do it if the policy moved in proportion.

    Returns:
        One step by all parts together, and one by each of them; those tried are the ones that suit all together. At
        most `MAX_REACH` times longer or shorter than promised.
    """
    tried: list[tuple[float, Sequence[float]]] = []

    def crossing(distances: Sequence[float]) -> float:
        # A policy that has become nan has gone too far.
        logs = [
            math.log(max(distance, 1e-3 * TARGET_DISTANCE)) if math.isfinite(distance) else 10.0
            for distance in distances
        ]
        step = _crossing(list(zip([math.log(step) for step, _ in tried], logs, strict=True)))
        return min(max(step, promised / MAX_REACH), promised * MAX_REACH)

    step = promised
    for _ in range(NUM_DISTANCE_STEPS):
        tried.append((step, moved_at(step)))
        step = crossing([(sum(part * part for part in parts) / len(parts)) ** 0.5 for _, parts in tried])
    return step, tuple(crossing(parts) for parts in zip(*(parts for _, parts in tried), strict=True))


def _crossing(tried: list[tuple[float, float]]) -> float:
    """The step that would move the policy by `TARGET_DISTANCE`, by linear interpolation of logarithms."""
    known, target = sorted(tried), math.log(TARGET_DISTANCE)
    for (left, low), (right, high) in itertools.pairwise(known):
        if low <= target < high:
            return math.exp(left + (right - left) * (target - low) / (high - low))
    log_step, log_moved = known[-1] if known[-1][1] < target else known[0]
    return math.exp(log_step + target - log_moved)


def make_fold(bench: Workbench, rollouts: Rollouts) -> Fold:
    """Batch and advantages of some rollouts."""
    rewards_P_G = rollouts.rewards_P_G()
    scale = rollouts.group_size / (rollouts.group_size - 1)
    advantages_P_G = (rewards_P_G - rewards_P_G.mean(1, keepdim=True)) * scale
    return Fold(rollouts=rollouts, batch=bench.score_batch(rollouts), advantages_B=advantages_P_G.flatten())


def rms(tensors) -> float:
    """Root mean square over all entries of some tensors."""
    squares, count = 0.0, 0
    for tensor in tensors:
        squares += float(tensor.detach().double().square().sum())
        count += tensor.numel()
    return (squares / max(1, count)) ** 0.5


@contextlib.contextmanager
def final_states(model: PreTrainedModel, batch: ScoreBatch) -> Iterator[list[torch.Tensor]]:
    """Collects what the decoder hands to the output head, averaged over each completion: (b, D) per micro-batch."""
    collected: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: object, output: Any) -> None:
        state = output[0].detach()
        first = sum(map(len, collected)) % len(batch.completion_mask)
        # The state at position t chooses token t + 1, so the mask is shifted by one.
        mask = batch.completion_mask[first : first + len(state), 1:].to(state.device, torch.float64).unsqueeze(-1)
        collected.append((state[:, :-1].double() * mask).sum(1) / mask.sum(1).clamp(min=1))

    handle = model.get_decoder().register_forward_hook(keep)
    try:
        yield collected
    finally:
        handle.remove()


def take(collected: list[torch.Tensor]) -> torch.Tensor:
    """Empties what one pass over the whole batch left, (B, D)."""
    states_B_D = torch.cat(collected)
    collected.clear()
    return states_B_D
