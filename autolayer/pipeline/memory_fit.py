"""Predicts, before anything is loaded, whether a run fits on its device and how small its micro-batches have to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from autolayer.core.config import Config
from autolayer.core.launch import num_processes
from autolayer.models import lora
from autolayer.models.device import find_device
from autolayer.models.layers import layer_parameters, linear_module_names
from autolayer.models.memory_estimate import MicroBatchShape, probing_bytes, training_bytes
from autolayer.pipeline.engine_choice import engine_name
from autolayer.training import micro_batching

USABLE = 0.9
"""Share of a device's memory that a run may plan with: fragments and the libraries' own buffers take the rest."""
MOST_SHARDS = 1024
"""Processes up to which a forecast looks for the number that is needed."""


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """What the device must hold, with micro-batches as small as they have to be, and what it has."""

    device: str
    total: int
    """Bytes of memory, without those that vLLM keeps throughout."""
    micro_batches: MicroBatchShape
    """How forward and backward passes are made."""
    probing: dict[str, int]
    """Bytes during the shared backward pass of the probes, by purpose."""
    training: dict[str, int]
    """Bytes while the lowest candidate is trained, which keeps most, by purpose."""
    engine_awake: int
    """Bytes that a sleeping vLLM takes when it wakes up, beside what training keeps; 0 where it does not sleep."""

    @property
    def fits(self) -> bool:
        """Whether probing, training and generation each fit."""
        held = sum(size for name, size in self.training.items() if name not in ("activations", "working space"))
        if held + self.engine_awake > self.total:
            return False
        return max(sum(self.probing.values()), sum(self.training.values())) <= USABLE * self.total

    @property
    def sentence(self) -> str:
        """Says whether the run fits, and if it does not, what to change."""
        shape = self.micro_batches
        if not self.fits:
            cure = "a device with more" if shape.shards > 1 else "a device with more, or several with --shard"
            return (
                f"TOO LITTLE for one sequence of {shape.width} tokens: give a smaller --max-new-tokens, higher "
                f"--layers, --adapter lora, or {cure}"
            )
        how = ", activations recomputed" if shape.recompute else ""
        where = f" in each of {shape.shards} processes" if shape.shards > 1 else ""
        return f"fits{where}, with micro-batches of {shape.tokens} tokens{how}"


def fit_memory(config: Config, model: Any, candidates: tuple[int, ...], width: int) -> MemoryFit:
    """Finds the largest micro-batches with which both the shared backward pass and the final training fit.

    Args:
        config: The resolved settings.
        model: The model on the meta device.
        candidates: The layers that may be trained; the lowest keep most.
        width: Tokens of the longest sequence.

    Returns:
        The first choice that fits, or else the smallest one.
    """
    device = find_device(config.device)
    gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if gpu else psutil.virtual_memory().total
    engine_bytes = int(total * config.vllm.memory_share) if engine_name(config, device.type) == "vllm" else 0
    lowest = candidates[: config.top_k]
    num_trained = _num_trained(config, model, lowest)

    def fit(micro_batches: MicroBatchShape) -> MemoryFit:
        return MemoryFit(
            device=torch.cuda.get_device_name(device) if gpu else "CPU",
            total=total if config.vllm.sleep else total - engine_bytes,
            micro_batches=micro_batches,
            probing=probing_bytes(model, candidates, micro_batches),
            training=training_bytes(model, lowest, micro_batches, num_trained=num_trained, reference=config.beta > 0),
            engine_awake=engine_bytes if config.vllm.sleep else 0,
        )

    found = None
    for micro_batches in _choices(config, width, device.type):
        found = fit(micro_batches)
        if found.fits:
            break
    assert found is not None
    return found


def _choices(config: Config, width: int, device: str) -> Iterator[MicroBatchShape]:
    """Yields ways to make passes, from the fastest to the smallest; with --shard then over more processes."""
    batch = max(config.prompts_per_step or 0, config.probe.num_prompts) * config.group_size
    shards = max(2, num_processes()) if config.shard else 1
    more_shards = config.shard and num_processes() < 2  # not launched yet: the forecast says how many would do
    while True:
        choice: tuple[int, bool] | None = (micro_batching.TOKENS, config.activation_checkpointing)
        while choice is not None:
            tokens, recompute = choice
            yield MicroBatchShape(
                width=width, tokens=tokens, recompute=recompute, batch=batch, device=device, shards=shards
            )
            choice = micro_batching.less(tokens, recompute, width)
        if not more_shards or shards >= MOST_SHARDS:
            return
        shards *= 2


def _num_trained(config: Config, model: Any, layers: tuple[int, ...]) -> int:
    """Returns the number of parameters that the final run trains."""
    if config.adapter is None:
        return sum(p.numel() for p in layer_parameters(model, layers).values())
    maps = [model.get_submodule(name) for name in linear_module_names(model, layers)]
    return sum(lora.RANK * (module.in_features + module.out_features) for module in maps)
