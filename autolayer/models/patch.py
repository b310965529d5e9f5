"""The product of a run: a file with only the trained layers, and the ways to put it back into its base model."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from autolayer.core.errors import LayerError, PatchError
from autolayer.core.layer_set import Layers, parse_layers
from autolayer.models.layers import find_layers, layer_parameters
from autolayer.models.loading import load_model, quiet_transformers, read_tokenizer, weight_hash
from autolayer.models.lora import ABOUT
from autolayer.models.permissions import follow_umask

if TYPE_CHECKING:
    from autolayer.models.loading import LoadedModel

FORMAT = "autolayer-patch-1"
_PACKAGES = ("autolayer", "torch", "transformers", "trl")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@dataclass(frozen=True, kw_only=True)
class LayerPatch:
    """Trained layers, and everything needed to know what they belong to."""

    tensors: Mapping[str, torch.Tensor]
    """Trained parameters by their full name, on the CPU, in the model's dtype."""
    base: str
    """Name of the base model."""
    base_hash: str
    """`models.weight_hash` of the base model, before training."""
    layers: Layers
    task: str
    algorithm: str
    steps: int
    """Optimizer steps of the training."""
    versions: Mapping[str, str] = field(default_factory=_versions)

    def save(self, path: str | Path) -> None:
        """Writes the patch whole or not at all.

        Raises:
            PatchError: The disk has no room for it, or the folder cannot be written to.
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
            "versions": json.dumps(dict(self.versions), sort_keys=True),
        }
        size = _bytes(self.tensors.values()) + 256 * len(self.tensors) + len(json.dumps(metadata))
        _make_room(path, path.parent, size)
        temporary = path.parent / f".{path.name}.{os.getpid()}"
        try:
            save_file({name: t.contiguous() for name, t in self.tensors.items()}, temporary, metadata=metadata)
            follow_umask(temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, size, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def from_model(
    model: nn.Module, layers: Layers, *, base: str, base_hash: str, task: str, algorithm: str, steps: int
) -> LayerPatch:
    """Copies the current weights of some layers into a patch.

    Args:
        model: The trained model.
        layers: What was trained.
        base: Name of the base model.
        base_hash: Its weight hash, taken before training.
        task: Name of the task.
        algorithm: "grpo" or "dr_grpo".
        steps: Optimizer steps done.
    """
    return LayerPatch(
        tensors={n: p.detach().to("cpu", copy=True) for n, p in layer_parameters(model, layers).items()},
        base=base,
        base_hash=base_hash,
        layers=layers,
        task=task,
        algorithm=algorithm,
        steps=steps,
    )


def load_patch(path: str | Path) -> LayerPatch:
    """Reads a patch.

    Raises:
        PatchError: The file is missing, damaged, or no layer patch.
    """
    path = Path(path)
    if not path.is_file():
        raise PatchError(f"patch {path} does not exist: give the layer.safetensors of a run folder.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("autolayer") != FORMAT:
                raise PatchError(f"{path} is no layer patch ({FORMAT}): give the layer.safetensors of a run folder.")
            return LayerPatch(
                tensors={name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118 (no dict)
                base=metadata["base"],
                base_hash=metadata["base_hash"],
                layers=_read_layers(metadata["layers"]),
                task=metadata["task"],
                algorithm=metadata["algorithm"],
                steps=int(metadata["steps"]),
                versions=json.loads(metadata["versions"]),
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise PatchError(
            f"patch {path} is damaged ({error}): copy it again, or delete it and repeat the command of its run."
        ) from error


def apply(model: nn.Module, patch: LayerPatch) -> None:
    """Writes a patch's layers into a model, in place.

    Raises:
        PatchError: The model is not the patch's base, or the tensors do not fit it. Then nothing has changed.
    """
    _check_base(model, patch.base, patch.base_hash)
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


def merge(base_name: str, patch_path: str | Path, out: str | Path) -> Path:
    """Writes base model and patch as one complete Hugging Face checkpoint, with tokenizer and generation config.

    Works on the CPU. Every weight outside the trained layers is bit for bit the base's, in the same dtype.

    Args:
        base_name: As for `load_model`.
        patch_path: A file that `LayerPatch.save` wrote, or a folder with an adapter.
        out: A folder that is empty or not there yet; it appears complete or not at all.

    Raises:
        PatchError: The patch belongs to another base, or `out` cannot be written.
        ModelError: The base cannot be loaded.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PatchError(f"--out {out} is {'not empty' if out.is_dir() else 'a file'}: give a new or empty folder.")
    base = load_model(base_name, device="cpu")
    if Path(patch_path).is_dir():
        apply_adapter(base.model, Path(patch_path))
    else:
        apply(base.model, load_patch(patch_path))
    _write_checkpoint(base, out)
    return out


def apply_adapter(model: nn.Module, folder: Path) -> None:
    """Adds a trained LoRA adapter to the weights under it, in place.

    Raises:
        PatchError: The folder holds no adapter of ours, or the model is not its base.
    """
    from peft import PeftModel

    about = read_adapter_info(folder)
    _check_base(model, about["base"], about["base_hash"])
    with quiet_transformers():
        PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # pyright: ignore


def read_adapter_info(folder: Path) -> dict[str, Any]:
    """What the adapter in a folder belongs to.

    Raises:
        PatchError: It cannot be read.
    """
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PatchError(
            f"{folder} holds no adapter that autolayer has written ({error}): give the folder of a finished run."
        ) from None


def _check_base(model: nn.Module, base: str, base_hash: str) -> None:
    found = weight_hash(model)
    if found != base_hash:
        name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        raise PatchError(
            f"the patch was trained on {base} (weights {base_hash[:10]}), but this is {name} (weights {found[:10]}): "
            f"apply it to an unchanged {base}."
        )


def _write_checkpoint(base: LoadedModel, out: Path) -> None:
    size = _bytes(base.model.parameters()) + (64 << 20)  # tokenizer and headers besides
    _make_room(out, out.absolute().parent, size)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        with quiet_transformers():
            base.model.save_pretrained(temporary)
            read_tokenizer(base.name).save_pretrained(temporary)
        follow_umask(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a generation config that contradicts itself
        raise _unwritable(out, size, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_disk_space(path: Path, parameters: Iterable[torch.Tensor]) -> None:
    """Refuses early, before hours of training, a patch that would not fit on the disk. Writes nothing.

    Raises:
        PatchError: The disk lacks room for a patch with these parameters.
    """
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    _check_room(path, folder, _bytes(parameters))


def _make_room(path: Path, folder: Path, size: int) -> None:
    """Makes the folder, and refuses before anything is written if its disk lacks room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, size, error) from error
    _check_room(path, folder, size)


def _check_room(path: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PatchError(f"{path} needs {size:,} bytes but the disk has {free:,} free: make room, or write elsewhere.")


def _unwritable(path: Path, size: int, error: Exception) -> PatchError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
    if full:
        return PatchError(f"{path} needs {size:,} bytes and the disk ran full: make room, or write elsewhere.")
    return PatchError(f"{path} cannot be written ({error}): choose a folder that can be written to.")


def _parameters(model: nn.Module, patch: LayerPatch) -> dict[str, nn.Parameter]:
    try:
        parse_layers(patch.layers, len(find_layers(model)), patch.base, allow_full=True)
    except LayerError as error:
        raise PatchError(f"the patch does not fit: {error}") from None
    return layer_parameters(model, patch.layers)


def _read_layers(text: str) -> Layers:
    return "full" if text == "full" else tuple(int(part) for part in text.split(","))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _kind(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
