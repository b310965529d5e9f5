"""Activation checkpointing that stops where the backward pass does.

transformers' own switch covers every block and makes the embeddings' output require gradients, so the backward pass
walks down to them, whatever is trained. Here only the blocks from the lowest trained one up are recomputed (arXiv
1604.06174, one block a segment): those below keep nothing anyway, since nothing in them needs a gradient.
"""

from __future__ import annotations

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
    """Inside, blocks from `lowest` up keep what enters them and are run again in the backward pass.

    A pass without gradients, such as generation, is not touched. The caller runs without a key-value cache: a second
    forward would add to it twice.
    """
    with ExitStack() as undo:
        for block in find_layers(model)[lowest:]:
            undo.callback(restore_forward, block, block.__dict__.get("forward"))
            block.forward = _recomputed(block.forward)
        yield


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
