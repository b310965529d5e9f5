"""Model names: embedded models, `smollm2`, folders, GGUF files and names on the Hub. This module loads no torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolayer.core.errors import ModelError, unknown
from autolayer.core.offline import check_hub
from autolayer.models.gguf import (
    SMOLLM2,
    SMOLLM2_HUB,
    check_gguf_package,
    converted,
    is_gguf,
    smollm2_file,
    smollm2_on_hub,
    smollm2_path,
    title,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A base model with a name of its own, and with defaults that fit it."""

    folder: str | None = None
    """Folder in `autolayer/data/`, if the model ships with the package. A new version of it gets a new folder, because
    published numbers belong to one set of weights."""
    forms: Mapping[str, str] = field(default_factory=dict)
    """Maps the kind of a task (the first part of its name) to the one form of it that this model can learn."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Maps a task to defaults of `Config` fields that the user did not set; '' stands for all other tasks."""

    def preset(self, task: str) -> Mapping[str, Any]:
        """Returns the defaults of `Config` fields for a task."""
        return self.presets.get(task, self.presets.get("", {}))


_FORMS = {"math": "math:arith", "code": "code:expr", "agent": "agent:house", "words": "math:arith"}
_PRESETS = {
    "": {"steps": 400, "prompts_per_step": 32, "num_eval": 1024, "budget": 0.25},
    # These cost more than arithmetic: code runs a program per completion, and an episode has about 100 tokens.
    "code:expr": {"steps": 120, "prompts_per_step": 16, "num_eval": 512, "budget": 0.25},
    "agent:house": {"steps": 60, "prompts_per_step": 16, "num_eval": 512, "budget": 0.25},
}
NAMED = {
    "tiny": NamedModel(folder="tiny-2", forms=_FORMS, presets=_PRESETS),
    "tiny-qwen2": NamedModel(folder="tiny-qwen2-2", forms=_FORMS, presets=_PRESETS),
    SMOLLM2: NamedModel(presets={"": {"steps": 32, "prompts_per_step": 8, "num_eval": 512}}),
}
EMBEDDED = {name: model for name, model in NAMED.items() if model.folder}

_HINT = "Or give your own model: a folder with config.json, a GGUF file, or a Hugging Face name such as Qwen/Qwen3-8B."


def check_model_name(name: str) -> None:
    """Checks that a model name can exist, without importing torch or contacting the Hub.

    Raises:
        UnknownNameError: The name is neither one of `NAMED`, a path nor a valid Hub name.
        ModelError: The name is a path that leads neither to a model folder nor to a GGUF file that can be read.
    """
    path = Path(name).expanduser()
    if name in NAMED:
        return
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise ModelError(
                    f"--model {name} is an adapter, not a model: give its base, or a folder that both were merged into "
                    "(PEFT's merge_and_unload)."
                )
            if any(path.glob("*.gguf")):
                raise ModelError(
                    f"--model {name} is a folder with GGUF files and no config.json: give one of the files, or better "
                    "the model that they were made from, as a folder with config.json and safetensors files."
                )
            raise ModelError(
                f"--model {name} is not a model folder: it has no config.json; give a folder that has one."
            )
    elif name and is_gguf(path):
        check_gguf_package(name)
    elif name and path.exists():
        raise ModelError(f"--model {name} is a file: give the folder that holds config.json and the weights.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"--model {name} does not exist: give the path of a folder with config.json, or a GGUF file.")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise unknown("model", name, NAMED, _HINT)


def full_name(name: str) -> str:
    """Returns a model name that means the same in every folder: the absolute path of a local one."""
    path = Path(name).expanduser()
    if name == SMOLLM2 and smollm2_on_hub():
        return SMOLLM2_HUB
    return os.path.abspath(path) if name not in NAMED and path.exists() else name


def titled(name: str) -> str:
    """Returns a model name as results show it; that of a GGUF file tells how its weights were quantized."""
    file = gguf_file(name)
    return name if file is None else title(name, file)


def gguf_file(name: str) -> Path | None:
    """Returns the GGUF file that a model name stands for, or None if it is another kind of model."""
    if name == SMOLLM2:
        return None if smollm2_on_hub() else smollm2_file()
    path = Path(name).expanduser()
    return path if name not in EMBEDDED and is_gguf(path) else None


def model_path(name: str) -> str:
    """Returns the argument of `from_pretrained` for a model name: a folder, or a name on the Hub.

    A GGUF file is converted to a folder at the first call on a machine.

    Raises:
        UnknownNameError: As `check_model_name`.
        ModelError: As `check_model_name`, or an embedded model, `smollm2` or a GGUF file cannot be had.
    """
    check_model_name(name)
    if name in EMBEDDED:
        folder = Path(__file__).parent.parent / "data" / str(EMBEDDED[name].folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"model '{name}' is missing from this installation ({folder}): reinstall autolayer.")
        return str(folder)
    if name == SMOLLM2:
        return smollm2_path()
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        return str(converted(path))
    check_hub()
    return name
