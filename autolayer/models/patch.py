"""LayerPatch, the product of a run: a safetensors file with only the trained layers, to apply to the base model."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from autolayer.core.errors import LayerError, PatchError
from autolayer.core.layer_set import Layers, parse_layers
from autolayer.core.run_folder import PATCH
from autolayer.models.disk_space import check_disk_space, num_bytes, write_error
from autolayer.models.layers import find_layers, layer_parameters
from autolayer.models.loading import weight_hash
from autolayer.models.sealed_tensors import check_finite, load_sealed, save_sealed

FORMAT = "autolayer-patch-1"
_PACKAGES = ("autolayer", "torch", "transformers", "trl")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@dataclass(frozen=True, kw_only=True)
class LayerPatch:
    """Trained layers, with a record of the base model and the training that they belong to."""

    tensors: Mapping[str, torch.Tensor]
    """The trained parameters by full name, on the CPU, in the base's dtype."""
    base: str
    """Name of the base model."""
    base_hash: str
    """`weight_hash` of the base model, taken before training."""
    layers: Layers
    task: str
    algorithm: str
    steps: int
    """Number of optimizer steps of the training."""
    signature: str = ""
    """Signature of the run that trained them; empty where it is not known."""
    versions: Mapping[str, str] = field(default_factory=_versions)

    def save(self, path: str | Path) -> None:
        """Writes the patch as a safetensors file, completely or not at all.

        Raises:
            PatchError: The disk has too little space, or the folder cannot be written to.
        """
        path = Path(path)
        layers = self.layers if self.layers == "full" else ",".join(map(str, self.layers))
        metadata = {
            "format": "pt",
            "autolayer": FORMAT,
            "base": self.base,
            "base_hash": self.base_hash,
            "layers": layers,
            "task": self.task,
            "algorithm": self.algorithm,
            "steps": str(self.steps),
            "signature": self.signature,
            "versions": json.dumps(dict(self.versions), sort_keys=True),
        }
        size = num_bytes(self.tensors.values()) + 256 * len(self.tensors) + len(json.dumps(metadata))
        check_disk_space(path, size)
        try:
            save_sealed(path, self.tensors, metadata)
        except OSError as error:
            raise write_error(path, size, error) from error

    def apply(self, model: nn.Module) -> None:
        """Writes the layers into the base model, in place; `autolayer.models.patch.apply` says what is refused."""
        apply(model, self)


def load_patch(path: str | Path) -> LayerPatch:
    """Reads a patch that `LayerPatch.save` wrote.

    Raises:
        PatchError: The file is missing, damaged, or not a layer patch.
    """
    path = Path(path)
    if not path.is_file():
        raise PatchError(f"patch {path} does not exist: give the layer.safetensors of a run folder.")
    try:
        tensors, metadata = load_sealed(path)
        if metadata.get("autolayer") != FORMAT:
            raise PatchError(f"{path} is no layer patch ({FORMAT}): give the layer.safetensors of a run folder.")
        check_finite(tensors)
        return LayerPatch(
            tensors=tensors,
            base=metadata["base"],
            base_hash=metadata["base_hash"],
            layers=_read_layers(metadata["layers"]),
            task=metadata["task"],
            algorithm=metadata["algorithm"],
            steps=int(metadata["steps"]),
            signature=metadata.get("signature", ""),
            versions=dict(json.loads(metadata["versions"])),
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        cure = "copy it again, or delete it and repeat the command of its run"
        if path.name != PATCH:  # perhaps a file of the user's own
            cure = f"give the {PATCH} of a run folder"
        raise PatchError(f"patch {path} is damaged ({error}): {cure}.") from error


def check_run(path: Path, trained_by: str | None, run: str | None) -> None:
    """Checks that a patch or an adapter was trained by the run in whose folder it is, where both are known.

    Raises:
        PatchError: The signatures differ.
    """
    if trained_by and run and trained_by != run:
        raise PatchError(
            f"{path} was trained by another run (signature {trained_by}) than its folder's ({run}): put the right one "
            "back, or delete it and repeat the command of this run."
        )


def apply(model: nn.Module, patch: LayerPatch) -> None:
    """Writes a patch's layers into a model, in place.

    Raises:
        PatchError: The model is not the patch's base, or the tensors do not fit it. The model is then unchanged.
    """
    check_patch_base(model, patch.base, patch.base_hash)
    parameters = _parameters(model, patch)
    problems = [f"{name} is missing" for name in parameters if name not in patch.tensors]
    for name, tensor in patch.tensors.items():
        if name not in parameters:
            problems.append(f"{name} is not one of the model's trained parameters")
        elif (tensor.shape, tensor.dtype) != (parameters[name].shape, parameters[name].dtype):
            problems.append(f"{name} is {_kind(tensor)}, the model has {_kind(parameters[name])}")
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise PatchError(
            f"the patch does not fit {patch.base}: {'; '.join(problems[:8])}{more}. Use the versions it was made with: "
            f"{', '.join(f'{k} {v}' for k, v in patch.versions.items())}."
        )
    with torch.no_grad():
        for name, tensor in patch.tensors.items():
            parameters[name].copy_(tensor)


def check_patch_base(model: nn.Module, base: str, base_hash: str) -> None:
    """Checks that a model has the weights of a patch's base.

    Args:
        model: The model.
        base: Name of the base model, for the error.
        base_hash: `weight_hash` of the base model.

    Raises:
        PatchError: The weight hash of the model is another one.
    """
    found = weight_hash(model)
    if found != base_hash:
        name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        raise PatchError(
            f"the patch was trained on {base} (weights {base_hash[:10]}), but this is {name} (weights {found[:10]}): "
            f"apply it to an unchanged {base}."
        )


def _parameters(model: nn.Module, patch: LayerPatch) -> dict[str, nn.Parameter]:
    try:
        parse_layers(patch.layers, len(find_layers(model)), patch.base, allow_full=True)
    except LayerError as error:
        raise PatchError(f"the patch does not fit: {error}") from None
    return layer_parameters(model, patch.layers)


def _read_layers(text: str) -> Layers:
    return "full" if text == "full" else tuple(int(part) for part in text.split(","))


def _kind(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
