"""autolayer: finds the transformer layer that RL post-training improves most, and trains it."""

import importlib
from typing import TYPE_CHECKING, Any

from autolayer.core.errors import (
    AutolayerError,
    ConfigError,
    DataError,
    EngineError,
    EpisodeError,
    LayerError,
    LoneRankError,
    ModelError,
    NoSignalError,
    PatchError,
    ProcessGroupError,
    RewardError,
    RunFolderError,
    SandboxError,
    SearchError,
    TrainingError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from autolayer.comparison.compare import compare
    from autolayer.comparison.comparison import Comparison
    from autolayer.core.config import Config
    from autolayer.core.progress import Progress
    from autolayer.measurement.measure import measure
    from autolayer.models.freeze_report import FreezeReport, freeze_report
    from autolayer.models.patch import LayerPatch, load_patch
    from autolayer.models.train_only import Trainable, train_only
    from autolayer.pipeline.pick import pick, train_layer
    from autolayer.reporting.contribution import Contribution
    from autolayer.reporting.progress import TerminalProgress
    from autolayer.reporting.results import PickResult
    from autolayer.tasks.base import Task

__version__ = "0.1.0"

__all__ = [
    "AutolayerError", "Comparison", "Config", "ConfigError", "Contribution", "DataError", "EngineError",
    "EpisodeError", "FreezeReport", "LayerError", "LayerPatch", "LoneRankError", "ModelError", "NoSignalError",
    "PatchError", "PickResult", "ProcessGroupError", "Progress", "RewardError", "RunFolderError", "SandboxError",
    "SearchError", "Task", "TerminalProgress", "Trainable", "TrainingError", "UnknownNameError", "compare",
    "freeze_report", "load_patch", "measure", "pick", "train_layer", "train_only",
]  # fmt: skip

_MODULES = {
    "compare": "comparison.compare",
    "freeze_report": "models.freeze_report",
    "load_patch": "models.patch",
    "measure": "measurement.measure",
    "pick": "pipeline.pick",
    "train_layer": "pipeline.pick",
    "train_only": "models.train_only",
    "Comparison": "comparison.comparison",
    "Config": "core.config",
    "Contribution": "reporting.contribution",
    "FreezeReport": "models.freeze_report",
    "LayerPatch": "models.patch",
    "PickResult": "reporting.results",
    "Progress": "core.progress",
    "Task": "tasks.base",
    "TerminalProgress": "reporting.progress",
    "Trainable": "models.train_only",
}
"""The modules of the names that are imported when they are first used, so that `import autolayer` loads no torch."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"autolayer.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'autolayer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
