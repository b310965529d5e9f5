"""A device that runs out of memory."""

from typing import Any

import torch


class SmallDevice:
    """Runs out of memory in passes with gradients of more than so many tokens."""

    def __init__(self, model: Any, most: int) -> None:
        self.most, self.tried = most, []
        model.get_decoder().register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            self.tried.append(kwargs["input_ids"].numel())
            if self.tried[-1] > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 80 GiB.")
