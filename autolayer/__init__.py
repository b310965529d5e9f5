"""autolayer: finds the transformer layer that RL post-training improves most, and trains it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolayer.comparison.compare import compare
    from autolayer.core.config import Config
    from autolayer.core.errors import (
        AutolayerError,
        ConfigError,
        DataError,
        EngineError,
        EpisodeError,
        LayerError,
        ModelError,
        NoSignalError,
        PatchError,
        ProcessGroupError,
        RewardError,
        RunFolderError,
        SandboxError,
        TrainingError,
        UnknownNameError,
    )
    from autolayer.measurement.measure import measure
    from autolayer.models.patch import LayerPatch, load_patch
    from autolayer.models.train_only import train_only
    from autolayer.pipeline.pick import pick, train_layer
    from autolayer.reporting.contribution import Contribution
    from autolayer.reporting.results import PickResult
    from autolayer.tasks.base import Task

__version__ = "0.1.0"
_ERRORS = (
    "AutolayerError", "ConfigError", "DataError", "EngineError", "EpisodeError", "LayerError", "ModelError",
    "NoSignalError", "PatchError", "ProcessGroupError", "RewardError", "RunFolderError", "SandboxError",
    "TrainingError", "UnknownNameError",
)  # fmt: skip
_HOMES = {
    "compare": "autolayer.comparison.compare",
    "load_patch": "autolayer.models.patch",
    "measure": "autolayer.measurement.measure",
    "pick": "autolayer.pipeline.pick",
    "train_layer": "autolayer.pipeline.pick",
    "train_only": "autolayer.models.train_only",
    "Config": "autolayer.core.config",
    "Contribution": "autolayer.reporting.contribution",
    "LayerPatch": "autolayer.models.patch",
    "PickResult": "autolayer.reporting.results",
    "Task": "autolayer.tasks.base",
    **dict.fromkeys(_ERRORS, "autolayer.core.errors"),
}

__all__ = [
    "AutolayerError",
    "Config",
    "ConfigError",
    "Contribution",
    "DataError",
    "EngineError",
    "EpisodeError",
    "LayerError",
    "LayerPatch",
    "ModelError",
    "NoSignalError",
    "PatchError",
    "PickResult",
    "ProcessGroupError",
    "RewardError",
    "RunFolderError",
    "SandboxError",
    "Task",
    "TrainingError",
    "UnknownNameError",
    "compare",
    "load_patch",
    "measure",
    "pick",
    "train_layer",
    "train_only",
]


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used (PEP 562), so that `import autolayer` loads nothing heavy."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autolayer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
