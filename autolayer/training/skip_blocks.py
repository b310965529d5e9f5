"""Forward passes that skip the lower blocks of a model."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from autolayer.models.fp32 import restore_forward

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def skipping(blocks: Iterable[torch.nn.Module], state: torch.Tensor) -> Iterator[None]:
    """Makes the lower blocks return `state`, (B, T, D), while the `with` block runs, instead of computing one."""
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(restore_forward, block, block.__dict__.get("forward"))
            undo.callback(vars(block).update, {name: vars(block)[name] for name in _HOOKS})
            # Hooks are removed as well, because FSDP's would unshard a block that computes nothing.
            vars(block).update({name: OrderedDict() for name in _HOOKS})
            block.forward = lambda *args, **kwargs: state
        yield
