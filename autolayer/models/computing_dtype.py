"""The dtype that a model computes in: its checkpoint's own, or float32 on a CPU without fast bfloat16.

Weights keep values that the checkpoint's dtype can hold. So what is sampled, measured and written is the same model in
either dtype; only the arithmetic between the weights is wider.
"""

import time

import psutil
import torch
from transformers import PreTrainedModel

from autolayer.models.loading import LoadedModel

SECONDS = 0.1
"""Time for the measurement; a pair of passes that has begun is finished."""
TOKENS, MAX_WIDTH, MAX_VOCABULARY = 64, 1024, 8192
"""Shape of the measured products; the model's own width and vocabulary where they are smaller."""
MARGIN = 1.25
"""How much faster float32 must be, since it doubles the memory."""


def computing_dtype(model: PreTrainedModel, device: torch.device, choice: str) -> torch.dtype:
    """Returns the dtype for a model, which may be on the meta device, by the value of --dtype.

    With "auto" on a CPU, it times a forward and backward pass of small matrix products in both dtypes.
    """
    narrow = model.dtype in (torch.bfloat16, torch.float16)
    if not narrow or choice == "checkpoint" or (choice == "auto" and device.type != "cpu"):
        return model.dtype
    if choice == "float32":
        return torch.float32
    if 4 * sum(p.numel() for p in model.parameters()) > psutil.virtual_memory().available / 2:
        return model.dtype
    seconds = dict.fromkeys((model.dtype, torch.float32), float("inf"))
    started = time.perf_counter()
    for attempt in range(1000):
        for dtype in seconds:
            taken = _time_pass(model, dtype)
            if attempt:  # the first one sets the kernels up
                seconds[dtype] = min(seconds[dtype], taken)
        if attempt and time.perf_counter() - started > SECONDS:
            break
    return torch.float32 if MARGIN * seconds[torch.float32] < seconds[model.dtype] else model.dtype


def _time_pass(model: PreTrainedModel, dtype: torch.dtype) -> float:
    config = model.config.get_text_config(decoder=True)
    width, vocabulary = min(config.hidden_size, MAX_WIDTH), min(config.vocab_size, MAX_VOCABULARY)
    states = torch.ones(TOKENS, width, dtype=dtype)
    block = torch.full((4 * width, width), 1 / width, dtype=dtype, requires_grad=True)
    head = torch.full((vocabulary, width), 1 / width, dtype=dtype)
    started = time.perf_counter()
    with torch.enable_grad():
        ((states @ block.t() @ block) @ head.t()).sum().backward()
    return time.perf_counter() - started


def widen(loaded: LoadedModel, dtype: torch.dtype) -> None:
    """Makes a loaded model compute in a dtype that holds all values of its own; does nothing if it is its own."""
    if dtype == loaded.model.dtype:
        return
    loaded.weight_hash  # noqa: B018  (computed from the weights as they are stored)
    loaded.stored_dtypes = {name: parameter.dtype for name, parameter in loaded.model.named_parameters()}
    torch.nn.Module.to(loaded.model, dtype)
    loaded.model.config.dtype = dtype
