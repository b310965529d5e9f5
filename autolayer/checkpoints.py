"""Arm checkpoints: the trained weights and Adam state of one arm at one step, and what they have cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autolayer.arms import Arm
from autolayer.costs import Cost
from autolayer.errors import RunFolderError


def name_of(arm: Arm) -> str:
    """The file of an arm's step, relative to the run folder."""
    return f"arms/{arm.key}/step-{arm.step:06d}.safetensors"


def write(folder: Path, arm: Arm, tensors: Mapping[str, torch.Tensor], cost: Cost) -> None:
    """Saves whole or not at all, and keeps the one before: a rung that was cut off is done again from it.

    Args:
        folder: The run folder.
        arm: At the step that is saved.
        tensors: What the optimizer gave (`MasterAdamW.tensors`).
        cost: Everything the arm's training has cost so far.
    """
    path = folder / name_of(arm)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(dict(tensors), temporary, {"arm": json.dumps(asdict(arm)), "cost": json.dumps(asdict(cost))})
    temporary.replace(path)
    for older in sorted(other for other in path.parent.glob("step-*.safetensors") if other < path)[:-1]:
        older.unlink()


def read(folder: Path, arm: Arm) -> tuple[dict[str, torch.Tensor], Cost]:
    """Returns the tensors of the arm's checkpoint, and what its training has cost so far.

    Raises:
        RunFolderError: The file is missing, damaged, or of another arm.
    """
    assert arm.checkpoint is not None, "an arm at step 0 has no checkpoint"
    path = folder / arm.checkpoint
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"checkpoint {path} cannot be read ({error}): restore it, or delete the run folder and start again."
        ) from None
    if json.loads(metadata.get("arm", "null")) != json.loads(json.dumps(asdict(arm))):
        raise RunFolderError(f"checkpoint {path} belongs to another arm: delete the run folder and start again.")
    return tensors, Cost(**json.loads(metadata["cost"]))


def latest(folder: Path, arm: Arm) -> Arm:
    """The arm at its furthest checkpoint on disk: where an interrupted run goes on."""
    steps = [int(path.stem.removeprefix("step-")) for path in (folder / "arms" / arm.key).glob("step-*.safetensors")]
    if not steps or max(steps) <= arm.step:
        return arm
    ahead = replace(arm, step=max(steps))
    return replace(ahead, checkpoint=name_of(ahead))


def delete(folder: Path, arm: Arm) -> None:
    """Removes all checkpoints of an arm."""
    shutil.rmtree(folder / "arms" / arm.key, ignore_errors=True)
