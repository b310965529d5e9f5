"""A patch without a training, for tests of patches and merges."""

import torch

from autolayer.models.layers import layer_parameters
from autolayer.models.loading import load_model
from autolayer.models.patch import LayerPatch


def trained(folder, layers, steps=7):
    """A patch whose weights differ from the base's, and the model that has them."""
    base = load_model(str(folder), device="cpu")
    base_hash = base.weight_hash
    with torch.no_grad():
        for p in layer_parameters(base.model, layers).values():
            p.add_(torch.randn_like(p) * 0.1)
    patch = LayerPatch(
        tensors={name: p.detach().clone() for name, p in layer_parameters(base.model, layers).items()},
        base=str(folder), base_hash=base_hash, layers=layers, task="math:arith", algorithm="grpo", steps=steps,
    )  # fmt: skip
    return base.model, patch
