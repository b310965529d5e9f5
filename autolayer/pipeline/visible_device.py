"""Makes the chosen GPU the only one that this process sees during a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autolayer.core.errors import ConfigError
from autolayer.core.launch import num_processes
from autolayer.models.device import find_device


@contextmanager
def only_visible(device: str) -> Iterator[str]:
    """Hides all GPUs but the one of --device while the block runs, and yields the name of the device inside of it.

    This is needed because transformers' Trainer and vLLM use the first visible GPU, whatever the current device is.
    Nothing is hidden for a CPU, for the first GPU, or with several processes, each of which takes its own GPU.
    """
    index = find_device(device).index
    if not index or num_processes() > 1:
        yield device
        return
    if torch.cuda.is_initialized():
        raise ConfigError(
            f"--device {device} cannot be selected, because this process has already initialized CUDA: start the "
            f"process with CUDA_VISIBLE_DEVICES={index}."
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
