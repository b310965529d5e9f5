"""Safetensors files that are whole or refused: a digest in the metadata covers all tensors and the rest of it."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autolayer.core.whole_files import DIGEST, NO_FILE, digest_of, write_whole
from autolayer.models.disk_space import follow_umask


def save_sealed(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata completely or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    sealed = {**metadata, DIGEST: _digest(tensors, metadata)}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, sealed)
        except SafetensorError as error:  # the type that safetensors has for every failure
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code)) from error
        follow_umask(temporary)

    write_whole(path, write)


def load_sealed(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a file. Files of older versions have no digest, and are accepted.

    Raises:
        ValueError: The content has changed since it was written.
        SafetensorError: It is no safetensors file.
        OSError: It cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"it is {NO_FILE}")
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    digest = metadata.pop(DIGEST, None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise ValueError("its content has changed since it was written")
    return tensors, metadata


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a hash of every tensor's name, dtype, shape and bytes, which does not depend on the device."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Checks that no weight is NaN or infinite.

    Raises:
        ValueError: One is.
    """
    if wrong := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{wrong[0]} holds NaN or infinite weights")


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    text = json.dumps([hash_tensors(tensors), dict(metadata)], sort_keys=True)
    return digest_of(text.encode())
