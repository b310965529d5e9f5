"""autolayer: finds the transformer layer that RL post-training improves most, and trains it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolayer.comparison.compare import compare
    from autolayer.measurement.measure import measure
    from autolayer.models.layers import train_only
    from autolayer.models.patch import load_patch
    from autolayer.pipeline.pick import pick, train_layer

__version__ = "0.1.0"
__all__ = ["compare", "load_patch", "measure", "pick", "train_layer", "train_only"]

_HOMES = {
    "compare": "autolayer.comparison.compare",
    "load_patch": "autolayer.models.patch",
    "measure": "autolayer.measurement.measure",
    "pick": "autolayer.pipeline.pick",
    "train_layer": "autolayer.pipeline.pick",
    "train_only": "autolayer.models.layers",
}


def __getattr__(name: str) -> Any:
    """Imports a verb when it is first used: `import autolayer` must stay free of torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autolayer' has no attribute {name!r}")
