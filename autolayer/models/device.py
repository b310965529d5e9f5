"""Turns the value of --device into a torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autolayer.core.errors import ConfigError
from autolayer.models.validation import first_line

if TYPE_CHECKING:
    import torch


def find_device(device: str) -> torch.device:
    """Returns the torch device with a name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch does not know the name or finds no such device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:  # torch does not know the name
        raise _unusable(device, first_line(error)) from None
    if where.type != "cpu":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None or where.type != accelerator.type:
            raise _unusable(device, f"torch finds no {where.type} device here")
        if (count := torch.accelerator.device_count()) <= (where.index or 0):
            raise _unusable(device, f"there are {count} such devices, counted from 0")
    return where


def _unusable(device: str, why: str) -> ConfigError:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    usable = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
    return ConfigError(f"--device {device} cannot be used ({why}): give {', '.join(usable[:-1])} or {usable[-1]}.")
