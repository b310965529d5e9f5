"""Forward passes that skip the lower blocks of a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from autolayer.models.fp32 import restore_forward

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def skipping(blocks: Iterable[torch.nn.Module], state: torch.Tensor) -> Iterator[None]:
    """Makes these blocks return a state inside, instead of computing one."""
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(restore_forward, block, block.__dict__.get("forward"))
            undo.callback(vars(block).update, {name: vars(block)[name] for name in _HOOKS})
            # No hook sees a block that does nothing: FSDP's would unshard it.
            vars(block).update({name: OrderedDict() for name in _HOOKS})
            block.forward = lambda *args, **kwargs: state
        yield
