"""The folder of a base model: its files, the weights that transformers reads from it, and what their headers say."""

import errno
import json
import os
import zipfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from autolayer.core.errors import ModelError
from autolayer.models.names import model_path

_PREFERRED = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""The files that transformers looks for, in its order."""
_LEFT_BEHIND = (
    ".*", "checkpoint-*", "original", "onnx", "openvino", "coreml", "model*.safetensors", "*.index.json",
    "pytorch_model*", "consolidated*", "params.json", "tf_model*", "flax_model*", "rust_model*", "*.h5", "*.msgpack",
    "*.ot", "*.onnx*", "*.gguf", "optimizer.*", "scheduler.pt", "rng_state*.pth", "training_args.bin",
    "runs", "wandb", "global_step*", "venv", "__pycache__",
)  # fmt: skip
"""Entries of a base folder that a merged one must not have, unless transformers reads them: the untrained weights in
other files or formats, and the state of earlier trainings."""

_LONGEST_HEADER = 100_000_000
"""The limit of the safetensors format, in bytes."""


def base_folder(name: str) -> Path:
    """Returns the folder that holds the files of a model: a local folder, or a snapshot in the Hub's cache.

    Small files that are not in the cache yet, such as a processor's, are fetched if the Hub can be reached.
    """
    path = model_path(name)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    weights = [*_LEFT_BEHIND, "*.safetensors", "*.bin", "*.pt", "*.pth", "original/*", "onnx/*"]
    try:
        return Path(snapshot_download(path, ignore_patterns=weights))
    except OSError:  # no network
        return Path(snapshot_download(path, local_files_only=True))


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of weights that transformers reads from a folder, an empty list if there are none.

    Some may be missing, or be something else than files.

    Raises:
        ModelError: The index names files in other folders.
    """
    entry = _entry(folder)
    if entry is None or not entry.name.endswith(".index.json") or not entry.is_file():
        return [] if entry is None else [entry]
    names = sorted(set(read_json(entry)["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{entry} names files outside of its folder: download the model again.")
    return [folder / name for name in names]


def model_files(folder: Path) -> list[Path]:
    """Returns the files that a copy of a model consists of, relative to its folder.

    Links count as what they lead to. Left out are hidden files, and the model's weights in files that transformers does
    not read, because these would remain those of the base.
    """
    entry, found, seen = _entry(folder), [], set()
    read = {file.name for file in (*weight_files(folder), *([entry] if entry else []))}
    for place, folders, names in os.walk(folder, followlinks=True):
        at = Path(place)
        seen.add(at.resolve())
        wanted = {name for name in (*folders, *names) if at != folder or name in read or not _is_left_behind(name)}
        folders[:] = [name for name in folders if name in wanted and (at / name).resolve() not in seen]
        found += [(at / name).relative_to(folder) for name in names if name in wanted and (at / name).is_file()]
    return sorted(found)


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one if there is no such file."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return found


def tensor_dtypes(file: Path) -> dict[str, str]:
    """Returns the names of the tensors in a weight file with their dtypes (such as BF16), without reading the tensors.

    Files in torch's oldest format would have to be read; for these it returns nothing.
    """
    if file.suffix != ".safetensors":
        tensors = read_tensors(file) if zipfile.is_zipfile(file) else {}
        return {name: _short(str(tensor.dtype)) for name, tensor in tensors.items()}
    with file.open("rb") as stream:
        header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), _LONGEST_HEADER)))
    return {name: about["dtype"] for name, about in header.items() if name != "__metadata__"}


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a weight file, mapped into memory where its format allows it."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], like: Path) -> None:
    """Writes a weight file in the format, and with the metadata, of another one."""
    if like.suffix == ".safetensors":
        with safe_open(like, framework="pt") as stream:
            metadata = stream.metadata()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=metadata)
    else:
        try:
            torch.save(dict(tensors), file)
        except RuntimeError as error:
            if "inline_container" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error  # torch hides the full disk


def _entry(folder: Path) -> Path | None:
    """Returns the file that transformers opens first: the weights, or the index of their shards."""
    named = read_json(folder / "config.json").get("transformers_weights")
    return next((folder / name for name in ([named] if named else _PREFERRED) if os.path.lexists(folder / name)), None)


def _short(dtype: str) -> str:
    """Returns the safetensors name of a dtype of torch: BF16 for torch.bfloat16."""
    return dtype.removeprefix("torch.").upper().replace("LOAT", "").replace("UINT", "U").replace("INT", "I")


def _is_left_behind(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LEFT_BEHIND)
