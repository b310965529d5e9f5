"""Activation checkpointing for the blocks that the backward pass reaches, and no others.

transformers' own switch covers every block and makes the embeddings' output require gradients, so the backward pass
always runs down to them. Here only the blocks from the lowest trained one up are checkpointed (arXiv 1604.06174, one
block per segment). The blocks below keep no activations in any case, since nothing in them needs a gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autolayer.models.fp32 import restore_forward
from autolayer.models.layers import find_layers


@contextmanager
def checkpoint_activations(model: nn.Module, lowest: int) -> Iterator[None]:
    """Makes blocks keep only their inputs in the forward pass, and run again in the backward pass.

    A pass without gradients, such as generation, is unaffected. Run without a key-value cache, because the second
    forward pass would add to it again.

    Args:
        model: A transformers decoder.
        lowest: The lowest block that is checkpointed; all blocks above it are too.
    """
    with ExitStack() as undo:
        for block in find_layers(model)[lowest:]:
            undo.callback(restore_forward, block, block.__dict__.get("forward"))
            block.forward = _checkpointed(block.forward)
        yield


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
