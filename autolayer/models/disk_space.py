"""Disk space and permissions of the files that a run leaves behind."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from autolayer.core.errors import PatchError, is_disk_full


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Returns the bytes that tensors take, in memory and in a safetensors file."""
    return sum(tensor.nbytes for tensor in tensors)


def check_disk_space(path: Path, size: int) -> None:
    """Checks that a file of `size` bytes fits on the disk of `path`, whose folder need not exist yet.

    Raises:
        PatchError: The disk has less free space.
    """
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PatchError(
            f"{path} needs {size:,} bytes but the disk has {free:,} free: make some space or write elsewhere."
        )


def write_error(path: Path, size: int, error: Exception) -> PatchError:
    """Builds the error to raise when writing `size` bytes to `path` failed with `error`."""
    if is_disk_full(error):
        return PatchError(f"{path} needs {size:,} bytes and the disk ran full: make some space or write elsewhere.")
    return PatchError(f"{path} cannot be written ({error}): choose a folder that can be written to.")


def follow_umask(path: Path) -> None:
    """Gives a file, or a folder and everything in it, the permissions that the umask asks for.

    safetensors and `tempfile` make files that only their owner can read.
    """
    mask = os.umask(0)
    os.umask(mask)
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        each.chmod((0o777 if each.is_dir() else 0o666) & ~mask)
