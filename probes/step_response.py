"""Step responses: the policy's change when one layer moves along a direction, on which most probes rest."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from autolayer.core.budget import RESPONSE_GROUP
from autolayer.distributed.fsdp import unsharded
from autolayer.models.fp32 import fp32_layers
from autolayer.probes.policy_distance import TARGET_DISTANCE, find_distance_steps
from autolayer.probes.shared_batch import Fold, make_fold
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.partial_forward import PartialForward
from autolayer.training.prefix_trees import by_sequence
from autolayer.training.workbench import Workbench

# B completions of a fold's subset, b of a micro-batch, D hidden width.

FIRST_STEP = 1e-4
"""First trial step, as a share of the layer's root mean square weight."""
RESPONSE_DEVIATION = 0.1
"""Deviation of the sequence log-ratio (nats) at which the response is measured: a KL divergence of .005."""
MAX_TRIALS, MAX_GROWTH = 4, 1000.0
"""Trial steps, and the largest factor between two of them."""

Direction = dict[str, torch.Tensor]
"""Parameter name -> step of that parameter, for the parameters of one layer."""


@dataclass(frozen=True, kw_only=True)
class StepResponse:
    """The policy's change on one fold after a step of one layer along the direction that the other folds give."""

    deviation: float
    """Standard deviation over sequences of the log-ratio per unit of step. For a small step the KL divergence is half
    the square of step times deviation."""
    movement_B_D: torch.Tensor
    """Change of the final hidden state per unit of step, averaged over the completion's tokens, (B, D)."""
    fold: Fold
    """The completions it was measured on, a subset of the fold."""
    distance_step: float = 0.0
    """The step at which the policy is `TARGET_DISTANCE` from the base; 0 for a layer that moves nothing."""
    reaches: tuple[float, ...] = ()
    """`distance_step` over the step of a linear policy, by each half of the prompts: below 1 where the policy moves
    away faster than in proportion to the step."""


class StepResponses:
    """Measures step responses. Forward passes start at the moved layer: what enters it is computed once and kept."""

    def __init__(self, bench: Workbench, folds: Sequence[Fold]) -> None:
        self.bench, self.folds = bench, folds
        self._subsets: dict[tuple[int, int, int], tuple[Fold, PartialForward]] = {}

    def subset(self, layer: int, fold: int, num_prompts: int, group_size: int) -> tuple[Fold, PartialForward]:
        """Returns the first prompts of a fold, and the partial forward that scores them from a layer on.

        Call it inside `scoring` for layers in rising order: what enters one is computed from what entered the last.
        """
        key = (fold, num_prompts, group_size)
        if key not in self._subsets:
            subset = make_fold(self.bench, self.folds[fold].rollouts[:num_prompts].thinned(group_size))
            self._subsets[key] = subset, self.bench.scorer.partial_forward(subset.batch)
        self.bench.scorer.move_to(self._subsets[key][1], layer)
        return self._subsets[key]

    def log_probs(self, batch: ScoreBatch | PartialForward) -> torch.Tensor:
        """Returns the log-probability of each whole completion, (B,), in float64."""
        return self.bench.scorer.log_probs(batch).double().sum(1)

    def measure(self, layer: int, fold: int, direction: Direction, num_prompts: int) -> StepResponse:
        """Measures the response on the first prompts of a fold, whose number is doubled while the deviation is 0.

        Where all prompts give 0, all completions of each are taken as well. It is 0 if all completions are alike, or if
        its two estimates are uncorrelated, in bf16 because of rounding and on few completions because of curvature. On
        the whole fold, a single estimate is taken in that case, so that a layer that moves the policy does not count as
        one that moves nothing.
        """
        group_size = RESPONSE_GROUP
        while True:
            is_whole = num_prompts >= self.folds[fold].num_prompts
            response = self._measure(layer, fold, direction, num_prompts, group_size, accept_one_estimate=is_whole)
            if response.deviation > 0 or (is_whole and group_size > RESPONSE_GROUP):
                return response
            if is_whole:
                group_size = max(self.folds[fold].rollouts.group_size, RESPONSE_GROUP + 1)
            num_prompts *= 2

    def _measure(
        self,
        layer: int,
        fold: int,
        direction: Direction,
        num_prompts: int,
        group_size: int,
        *,
        accept_one_estimate: bool,
    ) -> StepResponse:
        model = self.bench.model
        with ExitStack() as inside:
            inside.enter_context(unsharded(model, (layer,)))
            first_step = FIRST_STEP * rms(model.get_parameter(name) for name in direction)
            inside.enter_context(scoring(model, self.bench.engine.temperature))
            inside.enter_context(torch.no_grad())
            subset, forward = self.subset(layer, fold, num_prompts, group_size)
            inside.enter_context(fp32_layers(model, (layer,)))
            states = inside.enter_context(final_states(model, subset.batch))
            base_B, base_state_B_D = self.log_probs(forward), torch.cat(states)

            def log_ratios_at(step: float) -> torch.Tensor:
                states.clear()
                with stepped(model, direction, step):
                    return self.log_probs(forward) - base_B

            smaller, smaller_B, size = _trial_steps(log_ratios_at, first_step)
            ratios_B = log_ratios_at(size)
            movement_B_D = (torch.cat(states) - base_state_B_D) / size
            # Two estimates that share no forward pass: what rounding adds to one is not in the other.
            slopes_2_B = torch.stack([ratios_B / size, (smaller_B - log_ratios_at(-size)) / (smaller + size)])
            deviation = max(0.0, float(torch.cov(slopes_2_B)[0, 1])) ** 0.5
            if deviation == 0 and accept_one_estimate:
                deviation = float(slopes_2_B[0].std())
            if deviation == 0:
                return StepResponse(deviation=0.0, movement_B_D=movement_B_D, fold=subset)
            half_B = torch.arange(len(base_B)) // subset.rollouts.group_size % 2

            def rms_by_half(values_B: torch.Tensor) -> list[float]:
                squares_B = values_B.square().cpu()
                return [float(squares_B[half_B == half].mean()) ** 0.5 for half in half_B.unique()]

            found = find_distance_steps(
                lambda step: rms_by_half(log_ratios_at(step)), linear_step=TARGET_DISTANCE / deviation
            )
        slopes = zip(found.by_part, rms_by_half(slopes_2_B.mean(0)), strict=True)
        return StepResponse(
            deviation=deviation,
            movement_B_D=movement_B_D,
            fold=subset,
            distance_step=found.step,
            reaches=tuple(step * slope / TARGET_DISTANCE for step, slope in slopes),
        )


def _trial_steps(
    log_ratios_at: Callable[[float], torch.Tensor], first_step: float
) -> tuple[float, torch.Tensor, float]:
    """Returns a step whose log-ratios deviate by about `RESPONSE_DEVIATION`, its log-ratios (B,), and a step like it.

    Rounding hides a much smaller step, and curvature spoils a larger one.
    """
    step = first_step
    for _ in range(MAX_TRIALS):
        before, ratios_B = step, log_ratios_at(step)
        reached = float(ratios_B.std())
        if reached == 0:
            break
        step *= min(MAX_GROWTH, RESPONSE_DEVIATION / reached)
        if before / 2 < step < 2 * before:
            break
    return before, ratios_B, step


@contextlib.contextmanager
def stepped(model: PreTrainedModel, direction: Direction, size: float) -> Iterator[None]:
    """Adds size * direction to the weights inside the context, and restores them afterwards.

    Use it inside `fp32_layers` of that layer: a bf16 layer would swallow most of such a step (shown in arXiv
    2511.08567 and for sign steps of 5e-6).
    """
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


def rms(tensors: Iterable[torch.Tensor]) -> float:
    """Returns the root mean square over all entries."""
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
        state = by_sequence(output[0].detach())
        first = sum(map(len, collected))
        # The state at position t chooses token t + 1, so the mask is shifted by one.
        mask = batch.completion_mask[first : first + len(state), 1:].to(state.device, torch.float64).unsqueeze(-1)
        collected.append((state[:, :-1].double() * mask).sum(1) / mask.sum(1).clamp(min=1))

    with model.get_decoder().register_forward_hook(keep):
        yield collected
