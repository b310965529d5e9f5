"""LoRA on chosen layers (arXiv 2106.09685, through PEFT): low-rank adapters in place of whole layers.

Once a model has adapters, `layer_parameters` returns only their parameters. All code that trains, swaps or saves layers
therefore works for adapters, too. A new adapter is zero, so adding it does not change the output of the model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from autolayer.core.errors import PatchError
from autolayer.core.run_folder import RunFolder
from autolayer.core.whole_files import NO_FILE, unseal
from autolayer.models.sealed_tensors import check_finite, hash_tensors, load_sealed, save_sealed

RANK, ALPHA = 16, 32
ADAPTER_NAME = "default"
"""PEFT's name of the adapter; the names of its parameters end in `.{ADAPTER_NAME}.weight`."""
_PREFIX = "base_model.model."
"""Prefix that PEFT puts before a parameter's name in a file."""
INFO_FILE = "autolayer.json"
"""The file beside PEFT's own that records the base model and the training of an adapter."""


def add_adapters(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Adds an adapter to `nn.Linear` modules, in place; PEFT renames their weights (`base_layer`).

    The seed decides each adapter's first factor (A); the second (B) is zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(names))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    model.requires_grad_(False)


def can_adapt(model: nn.Module, last: str) -> bool:
    """Returns False if PEFT does not adapt the modules of a model whose name has this last part.

    In some mixtures of experts it takes every module that is called as those of the experts once were (gate_proj),
    shared experts and dense layers included, for the fused weights. Of Mamba it refuses some modules.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[last])
    try:
        convert_peft_config_for_transformers(config, model, None)
        _check_lora_target_modules_mamba(config, model, last)
    except ValueError:
        return False
    return last in (config.target_modules or ())


def adapter_parameters(model: nn.Module) -> set[int]:
    """Returns the ids of the parameters of all adapters in a model; an empty set without adapters."""
    return {id(p) for module in _adapted_modules(model).values() for n, p in module.named_parameters() if "lora_" in n}


def learning_rate_factor(model: nn.Module) -> float:
    """Returns by how much an adapter's learning rate exceeds that of a whole layer for an equally large first step.

    Adam's first step moves every entry of B by the rate, so W by ALPHA / RANK * rate * (sum over the rank of +-A),
    whose root mean square is rate * ALPHA / RANK * sqrt(RANK) * rms(A). A whole layer's entries move by the rate
    itself. For hidden widths of thousands this gives the tenfold rate that is found in practice.
    """
    first = [p for name, p in model.named_parameters() if name.endswith(f"lora_A.{ADAPTER_NAME}.weight")]
    squares = sum(float(p.detach().double().square().sum()) for p in first)
    rms = (squares / sum(p.numel() for p in first)) ** 0.5
    return 1 / (ALPHA / RANK * RANK**0.5 * rms)


def merged_weights(model: nn.Module, blocks: Sequence[nn.Module] | None = None) -> list[tuple[str, torch.Tensor]]:
    """Returns weights under their names in a checkpoint, with adapters merged into what they adapt.

    Args:
        model: A model with or without adapters; it is not changed.
        blocks: Return only the weights inside these modules; None for all weights.
    """
    wanted = None if blocks is None else {id(p) for block in blocks for p in block.parameters()}
    adapters, adapted = adapter_parameters(model), _adapted_modules(model)
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


def _adapted_modules(model: nn.Module) -> dict[str, Any]:
    """Returns the modules with an adapter, by full name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def save_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], base_path: str, info: Mapping[str, Any]) -> None:
    """Writes a folder that PEFT and vLLM load as an adapter of the base model.

    PEFT's own `save_pretrained` belongs to a `PeftModel` and writes every adapter in it. The model here is not wrapped
    in one, and the adapters of only one arm are written.

    Args:
        folder: The folder; it is made if it does not exist.
        tensors: Trained adapter parameters by their full name in the model.
        base_path: Path or Hub name of the base model.
        info: Record of the base model and the training, which `read_adapter_info` returns.
    """
    from peft import LoraConfig
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        # The name of a parameter is model.layers.3.self_attn.q_proj.lora_A.default.weight.
        target_modules=sorted({name.partition(".lora_")[0] for name in tensors}),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_path,
        inference_mode=True,
    )
    saved = {f"{_PREFIX}{n.replace(f'.{ADAPTER_NAME}.', '.')}": t for n, t in tensors.items()}
    save_sealed(folder / SAFETENSORS_WEIGHTS_NAME, saved, {"format": "pt"})
    RunFolder(folder).write(INFO_FILE, {**info, "weights_hash": hash_tensors(saved)})
    config.save_pretrained(str(folder))  # last, because PEFT takes a folder with this file for an adapter


def read_adapter_info(folder: Path) -> dict[str, Any]:
    """Returns the record of the base model and the training that `save_adapter` wrote.

    Raises:
        PatchError: The folder has no such file, or it cannot be read.
    """
    try:
        if (folder / INFO_FILE).exists() and not (folder / INFO_FILE).is_file():
            raise ValueError(f"{INFO_FILE} is {NO_FILE}")
        found = unseal(INFO_FILE, json.loads((folder / INFO_FILE).read_text(encoding="utf-8")))
        if not (isinstance(found["base"], str) and isinstance(found["base_hash"], str)):
            raise ValueError("its base is no text")
        if found["layers"] != "full" and not all(type(layer) is int for layer in found["layers"]):
            raise ValueError("its layers are no whole numbers")
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PatchError(
            f"{folder} holds no adapter that autolayer has written ({error}): give the folder of a finished run."
        ) from None


def load_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights that `save_adapter` wrote, by PEFT's names.

    Raises:
        PatchError: The folder is damaged.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    info = read_adapter_info(folder)
    try:
        tensors, _ = load_sealed(folder / SAFETENSORS_WEIGHTS_NAME)
        if info.get("weights_hash") not in (None, hash_tensors(tensors)):
            raise ValueError(f"{SAFETENSORS_WEIGHTS_NAME} and {INFO_FILE} are of two trainings")
        check_finite(tensors)
        return tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Adds a saved adapter to the weights that it adapts, in place, as `merged_weights` does.

    The names in its weights say what it adapts; PEFT's configuration, which may hold regular expressions, is not used.

    Raises:
        PatchError: The adapter is damaged, or does not fit the model.
    """
    factors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_adapter(folder).items()}
    try:
        if not factors:
            raise ValueError("it has no tensors")
        for name in sorted({name.partition(".lora_")[0] for name in factors}):
            weight = model.get_parameter(f"{name}.weight")
            down, up = (factors.pop(f"{name}.lora_{factor}.weight").float() for factor in "AB")
            delta = up @ down * (ALPHA / len(down))
            if delta.shape != weight.shape:
                raise ValueError(f"{name} has the shape {list(weight.shape)} in the model, not {list(delta.shape)}")
            weight.data += delta.to(weight.dtype)
    except (LookupError, AttributeError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> PatchError:
    return PatchError(
        f"the adapter in {folder} is damaged or does not fit the model ({error}): copy it again, or delete it and "
        "repeat the command of its run."
    )
