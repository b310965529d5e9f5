"""Makes one GPU the only one that this process sees, while a run lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autolayer.core.errors import ConfigError
from autolayer.core.launch import num_processes
from autolayer.models.device import find_device


@contextmanager
def only_visible(device: str) -> Iterator[str]:
    """Hides all GPUs but the chosen one by CUDA_VISIBLE_DEVICES, which is as before afterwards.

    transformers' Trainer and vLLM take the first GPU that they see, whatever the current device is.

    Args:
        device: The value of --device. Nothing is hidden for a CPU, for the first GPU, or with several processes, each
            of which takes its own GPU.

    Yields:
        The name that the device has inside.

    Raises:
        ConfigError: There is no such device, or CUDA is in use already and would not notice.
    """
    index = find_device(device).index
    if not index or num_processes() > 1:
        yield device
        return
    if torch.cuda.is_initialized():
        raise ConfigError(
            f"--device {device} comes too late, since this process uses CUDA already: start it with "
            f"CUDA_VISIBLE_DEVICES={index}."
        )
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = before.split(",")[index] if before else str(index)
    try:
        yield "cuda"
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
