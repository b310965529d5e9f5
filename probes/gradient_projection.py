"""Random projections of the gradients of single completions, which are too large to keep.

The gradient of a linear map's weights by one sequence is a sum over its tokens of outer products, input times output
gradient. Projecting both sides on a few random directions keeps inner products (Johnson-Lindenstrauss) and never forms
the gradient: a layer of any size takes `PROJECTION_DIM`^2 numbers per map and sequence (LoGra, arXiv 2405.13954).
Norms, biases and experts kept as one 3-D tensor are left out; the layer's other weights stand for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autolayer.models.layers import find_layers

# B sequences, b of a micro-batch, T tokens, K = PROJECTION_DIM.

PROJECTION_DIM = 16
"""Number of random directions on either side of a linear map."""


class GradientProjector:
    """Keeps one projected gradient for each layer and each sequence of a backward pass.

    Two projectors of equal layers and seed use the same directions, so their rows may be compared.

    Args:
        model: The model whose blocks are observed.
        layers: Indices of these blocks.
        side: Random directions on either side of a linear map.
        seed: Seed of the directions.
    """

    def __init__(
        self, model: PreTrainedModel, layers: tuple[int, ...], *, side: int = PROJECTION_DIM, seed: int = 0
    ) -> None:
        self._model, self._layers, self._side = model, layers, side
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: dict[int, list[list[torch.Tensor]]] = {layer: [] for layer in layers}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Projects the gradients of every backward pass inside the context."""
        blocks, handles = find_layers(self._model), []
        try:
            for layer in self._layers:
                for module in blocks[layer].modules():
                    if isinstance(module, nn.Linear | Conv1D):
                        rows: list[torch.Tensor] = []
                        self._rows[layer].append(rows)
                        handles.append(module.register_forward_hook(self._hook(module, rows)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, layer: int) -> torch.Tensor:
        """Returns the projected gradients of a layer, (B, numbers), B sequences in the order of the passes.

        Linear maps without a gradient are left out.
        """
        parts = [torch.cat(rows) for rows in self._rows[layer] if rows]
        return torch.cat(parts, dim=1) if parts else torch.zeros(0, 0)

    def _hook(self, module: nn.Linear | Conv1D, kept: list[torch.Tensor]) -> Callable:
        width_in, width_out = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
        left, right = self._directions(width_in), self._directions(width_out)

        def on_forward(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not output.requires_grad or output.dim() != 3:
                return
            short_b_T_K = inputs[0].detach().float() @ left.to(output.device)

            def on_backward(gradient: torch.Tensor) -> None:
                moved_b_T_K = gradient.float() @ right.to(gradient.device)
                kept.append(torch.einsum("bti,btj->bij", short_b_T_K, moved_b_T_K).flatten(1).cpu())

            output.register_hook(on_backward)

        return on_forward

    def _directions(self, width: int) -> torch.Tensor:
        """Returns random directions that keep inner products on average, or all directions where there are few."""
        if width <= self._side:
            return torch.eye(width)
        return torch.randn(width, self._side, generator=self._generator) / self._side**0.5
