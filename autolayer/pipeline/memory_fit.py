"""Whether a run fits on its device, and how small its passes have to be: predicted before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from autolayer.core.config import Config
from autolayer.core.layer_set import Layers
from autolayer.core.progress import num_processes
from autolayer.models import lora
from autolayer.models.layers import layer_parameters, linear_module_names
from autolayer.models.loading import find_device
from autolayer.models.memory_estimate import MicroBatchShape, probing_bytes, training_bytes
from autolayer.pipeline.setup import engine_name
from autolayer.training import micro_batching

USABLE = 0.9
"""Of a device's memory: fragments and the libraries' own buffers take the rest."""


MOST_SHARDS = 1024
"""Processes up to which a forecast looks for the number that is needed."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the device must hold, with passes made as small as they have to be, and what it has."""

    device: str
    total: int
    """Bytes of memory, without what vLLM takes where it generates."""
    passing: MicroBatchShape
    probing: dict[str, int]
    woken: int
    """Bytes that vLLM takes when it wakes up, beside what training holds on to; 0 where it does not sleep."""
    training: dict[str, int]
    """Of the lowest candidate, which keeps most."""

    @property
    def fits(self) -> bool:
        held = sum(size for name, size in self.training.items() if name != "activations" and name != "working space")
        if held + self.woken > self.total:
            return False
        return max(sum(self.probing.values()), sum(self.training.values())) <= USABLE * self.total

    @property
    def says(self) -> str:
        """A sentence for the terminal."""
        if not self.fits:
            cure = "a device with more" if self.passing.shards > 1 else "a device with more, or several with --shard"
            return (
                f"TOO LITTLE for one sequence of {self.passing.width} tokens: give a smaller --max-new-tokens, higher "
                f"--layers, --adapter lora, or {cure}"
            )
        how = ", activations recomputed" if self.passing.recompute else ""
        where = f" in each of {self.passing.shards} processes" if self.passing.shards > 1 else ""
        return f"fits{where}, with passes of {self.passing.tokens} tokens{how}"


def make_room(config: Config, model: Any, candidates: tuple[int, ...], width: int) -> Room:
    """How passes have to be made so that both the shared backward pass and the final training fit on the device.

    Args:
        config: Resolved.
        model: On the meta device.
        candidates: What may be trained; the lowest keep most.
        width: Tokens of the longest sequence.
    """
    device = find_device(config.device)
    gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if gpu else psutil.virtual_memory().total
    taken = int(total * config.vllm.memory_share) if engine_name(config, device.type) == "vllm" else 0
    total -= 0 if config.vllm.sleep else taken
    lowest = "full" if config.boost is not None else candidates[: config.top_k]
    num_trained = _num_trained(config, model, lowest)
    batch = max(config.prompts_per_step or 0, config.probe.num_prompts) * config.group_size
    choice: tuple[int, bool] | None = (micro_batching.TOKENS, config.recompute)
    shards = max(2, num_processes()) if config.shard else 1
    while choice is not None:
        passing = MicroBatchShape(
            width=width, tokens=choice[0], recompute=choice[1], batch=batch, device=device.type, shards=shards
        )
        room = Room(
            device=torch.cuda.get_device_name(device) if gpu else "CPU",
            total=total,
            passing=passing,
            woken=taken if config.vllm.sleep else 0,
            probing=probing_bytes(model, candidates, passing),
            training=training_bytes(model, lowest, passing, num_trained=num_trained, reference=config.beta > 0),
        )
        if room.fits:
            break
        choice = micro_batching.less(*choice, width)
        if choice is None and config.shard and num_processes() < 2 and shards < MOST_SHARDS:
            shards, choice = 2 * shards, (micro_batching.TOKENS, config.recompute)  # how many would do
    return room


def _num_trained(config: Config, model: Any, layers: Layers) -> int:
    """Parameters that the final run trains."""
    if config.adapter is None or layers == "full":
        return sum(p.numel() for p in layer_parameters(model, layers).values())
    maps = [model.get_submodule(name) for name in linear_module_names(model, layers)]
    return sum(lora.RANK * (module.in_features + module.out_features) for module in maps)
