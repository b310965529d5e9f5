"""LoRA on chosen layers (arXiv 2106.09685, by PEFT): low-rank adapters in place of whole layers.

Once adapters are in a model, they are what is trained of a layer (`layers.layer_parameters`), so everything that
trains, swaps or saves layers does the same with them. They start at zero: the model computes what it did before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autolayer.models.permissions import follow_umask

RANK, ALPHA = 16, 32
ADAPTER_NAME = "default"
"""PEFT's name of an adapter; every parameter's name has it in front of `.weight`."""
ABOUT = "autolayer.json"
"""Beside PEFT's own files: what the adapter belongs to."""


def add_adapters(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Puts an adapter on each of these linear maps, in place.

    Args:
        model: Its weights stay as they are; those under an adapter are renamed (`base_layer`).
        names: Full names of `nn.Linear` modules.
        seed: Of the adapters' first factor; the second is zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(names))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    model.requires_grad_(False)


def adapter_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters of all adapters in a model; empty where there is none."""
    if "peft" not in sys.modules:  # then nobody has put one in
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                found |= {id(p) for p in getattr(module, name).parameters()}
    return found


def learning_rate_factor(model: nn.Module) -> float:
    """How much larger an adapter's learning rate has to be for a first step as large as a whole layer's.

    Adam's first step moves every entry of B by the rate, so W by ALPHA / RANK * rate * (sum over the rank of +-A),
    whose root mean square is rate * ALPHA / RANK * sqrt(RANK) * rms(A). A whole layer's entries move by the rate
    itself. For hidden widths of thousands this gives the tenfold rate that is found in practice.
    """
    first = [p for name, p in model.named_parameters() if name.endswith(f"lora_A.{ADAPTER_NAME}.weight")]
    squares = sum(float(p.detach().double().square().sum()) for p in first)
    rms = (squares / sum(p.numel() for p in first)) ** 0.5
    return 1 / (ALPHA / RANK * RANK**0.5 * rms)


def merged_weights(model: nn.Module, blocks: Sequence[nn.Module] | None = None) -> list[tuple[str, torch.Tensor]]:
    """Weights under the names that they have in a checkpoint, adapters merged into what they adapt.

    Args:
        model: With or without adapters.
        blocks: Only what is inside these; None for everything.
    """
    wanted = None if blocks is None else {id(p) for block in blocks for p in block.parameters()}
    adapters, adapted = adapter_parameters(model), _adapted(model)
    found = []
    for name, parameter in model.named_parameters():
        if id(parameter) in adapters or (wanted is not None and id(parameter) not in wanted):
            continue
        module = adapted.get(name.removesuffix(".base_layer.weight"))
        tensor = parameter.detach()
        if module is not None and name.endswith(".base_layer.weight"):
            tensor = tensor + module.get_delta_weight(ADAPTER_NAME).to(tensor.dtype)
        found.append((name.replace(".base_layer.", "."), tensor))
    return found


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Modules with an adapter, by full name."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def save_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], base_path: str, about: Mapping[str, Any]) -> None:
    """Writes a folder that PEFT and vLLM load as an adapter of the base model.

    Args:
        folder: Made if it is not there.
        tensors: Trained adapter parameters by their full name in the model.
        base_path: What the base model is loaded from.
        about: Goes into `ABOUT`; its `layers` are those with an adapter.
    """
    from peft import LoraConfig
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    # model.layers.3.self_attn.q_proj.lora_A.default.weight
    paths = [name.partition(".lora_")[0].split(".") for name in tensors]
    place = next(index for index, part in enumerate(paths[0]) if part.isdecimal())
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=sorted({path[-1] for path in paths}),
        layers_to_transform=sorted({int(path[place]) for path in paths}),
        layers_pattern=paths[0][place - 1],
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_path,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        f"base_model.model.{name.replace(f'.{ADAPTER_NAME}.', '.')}": t.contiguous() for name, t in tensors.items()
    }
    save_file(named, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    follow_umask(folder / SAFETENSORS_WEIGHTS_NAME)
    (folder / ABOUT).write_text(json.dumps(dict(about), indent=1) + "\n", encoding="utf-8")
    config.save_pretrained(str(folder))  # last: with it the folder is an adapter
