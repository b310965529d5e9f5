"""Predicts, before weights are loaded, whether a run fits on its device and how large its micro-batches can be.

The prediction is only shown. If a device runs out of memory during a run, training/out_of_memory.py makes the passes
smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from autolayer.core.config import Config
from autolayer.core.launch import num_processes
from autolayer.core.layer_set import Layers
from autolayer.models import lora
from autolayer.models.device import find_device
from autolayer.models.layers import find_layers, layer_parameters, linear_module_names
from autolayer.models.memory_estimate import MicroBatchShape, probing_bytes, training_bytes
from autolayer.pipeline.engine_choice import engine_name
from autolayer.training.out_of_memory import TOKENS, MicroBatchSize

USABLE = 0.9
"""Share of a device's memory that a plan may use; fragmentation and the libraries' buffers take the rest."""
MAX_SHARDS = 1024
"""Largest number of processes that a forecast for --shard tries."""


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """The memory that a run needs at the chosen size of its micro-batches, and the memory of the device."""

    device: str
    total: int
    """Bytes of the device's memory, without those that vLLM keeps during training."""
    micro_batches: MicroBatchShape
    probing: dict[str, int]
    """Bytes during the shared backward pass of the probes, by purpose."""
    training: dict[str, int]
    """Bytes while the lowest candidate is trained, which needs most memory, by purpose."""
    engine_awake: int
    """Bytes that vLLM takes when it wakes up beside the weights and states of training; 0 if it never sleeps."""

    @property
    def fits(self) -> bool:
        """True if probing, training and generation each fit."""
        held = sum(size for name, size in self.training.items() if name not in ("activations", "working space"))
        if held + self.engine_awake > self.total:
            return False
        return max(sum(self.probing.values()), sum(self.training.values())) <= USABLE * self.total

    @property
    def sentence(self) -> str:
        """Says whether the run fits and, if it does not, what to change."""
        shape = self.micro_batches
        if not self.fits:
            cure = "a device with more" if shape.shards > 1 else "a device with more, or several with --shard"
            return (
                f"TOO LITTLE for one sequence of {shape.width} tokens: give a smaller --max-new-tokens, higher "
                f"--layers, --adapter lora, or {cure}"
            )
        how = ", activations recomputed" if shape.activation_checkpointing else ""
        where = f" in each of {shape.shards} processes" if shape.shards > 1 else ""
        return f"fits{where}, with micro-batches of {shape.tokens} tokens{how}"


def fit_memory(
    config: Config,
    model: Any,
    candidates: tuple[int, ...],
    width: int,
    *,
    trained: Layers | None = None,
    probes: bool = True,
) -> MemoryFit:
    """Finds the largest micro-batches with which both the shared backward pass and the final training fit.

    Args:
        config: The settings of the run.
        model: The model on the meta device.
        candidates: The layers that are probed.
        width: Tokens of the longest sequence.
        trained: The layers that are trained; None for the lowest candidates, which need most memory.
        probes: False if the run has no probes.
    """
    device = find_device(config.device)
    gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if gpu else psutil.virtual_memory().total
    engine_bytes = int(total * config.vllm.memory_share) if engine_name(config, device.type) == "vllm" else 0
    lowest = candidates[: config.top_k] if trained is None else trained
    num_trained, reference = _num_trained(config, model, lowest), config.beta > 0
    fits = (
        MemoryFit(
            device=torch.cuda.get_device_name(device) if gpu else "CPU",
            total=total if config.vllm.sleep else total - engine_bytes,
            micro_batches=micro_batches,
            probing=probing_bytes(model, candidates, micro_batches) if probes else {},
            training=training_bytes(model, lowest, micro_batches, num_trained=num_trained, reference=reference),
            engine_awake=engine_bytes if config.vllm.sleep else 0,
        )
        for micro_batches in _choices(config, width, device.type)
    )
    for found in fits:
        if found.fits:
            break
    return found


def _choices(config: Config, width: int, device: str) -> Iterator[MicroBatchShape]:
    """Yields sizes of micro-batches from the largest on, with --shard then for more and more processes."""
    batch = max(config.prompts_per_step or 0, config.probe.num_prompts) * config.group_size
    shards = max(2, num_processes()) if config.shard else 1
    more_shards = config.shard and num_processes() < 2  # not launched yet: the forecast finds the number of processes
    while True:
        size: MicroBatchSize | None = MicroBatchSize(tokens=TOKENS, checkpointing=config.activation_checkpointing)
        while size is not None:
            yield MicroBatchShape(
                width=width,
                tokens=size.tokens,
                activation_checkpointing=size.checkpointing,
                batch=batch,
                device=device,
                shards=shards,
            )
            size = size.smaller(width)
        if not more_shards or shards >= MAX_SHARDS:
            return
        shards *= 2


def _num_trained(config: Config, model: Any, layers: Layers) -> int:
    if config.adapter is None:
        return sum(p.numel() for p in layer_parameters(model, layers).values())
    adapted = range(len(find_layers(model))) if layers == "full" else layers
    maps = [model.get_submodule(name) for name in linear_module_names(model, adapted)]
    return sum(lora.RANK * (module.in_features + module.out_features) for module in maps)
