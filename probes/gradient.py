"""The shared gradient: one backward pass for all layers, while the device holds one layer's gradient at a time.

Each parameter's gradient moves to host memory as soon as it is complete and is summed there in float32, so the device
needs no memory for gradients and micro-batches lose nothing to rounding. A complete fold's is kept in the model's own
dtype. Host memory per parameter is that dtype's size for each fold, and four bytes for the fold in progress.
"""

import time
from collections.abc import Callable

import torch

from autolayer.models.layers import layer_parameters, pass_parameters
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring
from autolayer.training.scored_passes import computed
from autolayer.training.workbench import Workbench

Gradient = dict[int, dict[str, torch.Tensor]]
"""layer -> parameter name -> gradient on the host, in the model's dtype (float16: in float32)."""


def streamed_gradient(
    bench: Workbench,
    batch: ScoreBatch,
    advantages_B: torch.Tensor,
    layers: tuple[int, ...],
    *,
    max_sequences: int | None = None,
) -> Gradient:
    """Returns the gradient of the expected reward, (1/B) sum_i A_i grad log pi(completion_i | prompt_i), by layer.

    REINFORCE with the group's mean as baseline (the on-policy gradient of GRPO without its scalings, arXiv
    2402.03300): its inner product with a step is the reward gained to first order. The batch has B sequences sampled
    from the base weights, which are loaded. `max_sequences` is the size of a micro-batch; default: as in training.
    """
    started, model = time.perf_counter(), bench.model
    before = computed(model)
    owner = {name: layer for layer in layers for name in layer_parameters(model, (layer,))}
    flagged = [model.get_parameter(name) for name in owner]
    parameters = pass_parameters(model, layers)
    for parameter in (*flagged, *parameters.values()):
        parameter.requires_grad_(True)
    gradients: dict[str, torch.Tensor] = {}
    hooks = [p.register_post_accumulate_grad_hook(_move_to_host(name, gradients)) for name, p in parameters.items()]
    try:
        with scoring(model, bench.engine.temperature), bench.micro_batching.checkpointed(layers):
            width = batch.input_ids.shape[1]
            for rows, part in batch.split(max_sequences or bench.micro_batching.sequences(width)):
                log_probs_B = log_probs(model, part).sum(1)
                advantages = advantages_B[rows].to(log_probs_B.device, log_probs_B.dtype)
                ((log_probs_B * advantages).sum() / len(batch.input_ids)).backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in (*flagged, *parameters.values()):
            parameter.requires_grad_(False)
            parameter.grad = None
    cost = bench.costs.train(computed(model) - before, layers) + bench.costs.keep_gradients(len(layers))
    bench.account.charge(cost, time.perf_counter() - started)
    gradient: Gradient = {layer: {} for layer in layers}
    for name, layer in owner.items():
        found = gradients.pop(name, None)
        if found is None:  # no token was routed to this expert
            found = torch.zeros_like(parameters[name], device="cpu")
        dtype = parameters[name].dtype
        gradient[layer][name] = found if dtype == torch.float16 else found.to(dtype)  # float16 could overflow
    return gradient


def _move_to_host(name: str, gradients: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """Returns a hook that adds a parameter's gradient to the one on the host, in float32, and frees the device's."""

    def move(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.to("cpu", torch.float32)
        gradients[name] = gradients[name].add_(gradient) if name in gradients else gradient
        parameter.grad = None

    return move


def inner(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Returns the inner product over all parameters of a layer; only the sum of the tensors' is in float64."""
    # A product of whole tensors in float64 would take longer than the passes of a small probe.
    return sum(float(torch.dot(left[name].flatten().float(), right[name].flatten().float())) for name in left)
