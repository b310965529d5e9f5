"""autolayer: finds the transformer layer that RL post-training improves most, and trains it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolayer.comparing.run import compare
    from autolayer.layers import train_only
    from autolayer.measuring.run import measure
    from autolayer.patch import load_patch
    from autolayer.pipeline import pick, train_layer

__version__ = "0.1.0"
__all__ = ["compare", "load_patch", "measure", "pick", "train_layer", "train_only"]

_HOMES = {
    "compare": "autolayer.comparing.run",
    "load_patch": "autolayer.patch",
    "measure": "autolayer.measuring.run",
    "pick": "autolayer.pipeline",
    "train_layer": "autolayer.pipeline",
    "train_only": "autolayer.layers",
}


def __getattr__(name: str) -> Any:
    """Imports a verb when it is first used: `import autolayer` must stay free of torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autolayer' has no attribute {name!r}")
