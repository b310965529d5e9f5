"""Arm checkpoints: the trained weights and Adam state of one arm at one step, and what they have cost.

Beside them, history.json has what a rung is judged by and must outlive the process that trained it: the rewards of
every training step, and what the search has paid for the arm until each checkpoint.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError

HISTORY = "history.json"


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
    save_whole(tensors, path, {"arm": json.dumps(asdict(arm)), "cost": json.dumps(asdict(cost))})
    for older in sorted(other for other in path.parent.glob("step-*.safetensors") if other < path)[:-1]:
        older.unlink()


def save_whole(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.part")  # a worker taken for dead may still be at it
    try:
        save_file(dict(tensors), temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def note(folder: Path, arm: Arm, rewards: Sequence[Sequence[float]], paid: Cost) -> None:
    """Adds a segment to an arm's history, before its checkpoint is written.

    Args:
        folder: The run folder.
        arm: At the step that the segment began at.
        rewards: Mean reward of every group, for each of the segment's steps.
        paid: What the search has paid for these steps.
    """
    found = _history(folder, arm)
    total = asdict(paid_for(folder, arm) + paid)
    kept = {step: cost for step, cost in found["paid"].items() if int(step) <= arm.step}
    steps = [*found["rewards"][: arm.step], *map(list, rewards)]
    path = folder / "arms" / arm.key / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.part")
    temporary.write_text(json.dumps({"rewards": steps, "paid": {**kept, str(len(steps)): total}}))
    temporary.replace(path)


def paid_for(folder: Path, arm: Arm) -> Cost:
    """What the search has paid for an arm up to its step."""
    paid = _history(folder, arm)["paid"].get(str(arm.step))
    return Cost(**paid) if paid else Cost()


def training_rewards(folder: Path, arm: Arm, from_step: int) -> tuple[float, ...]:
    """Mean reward of every training group from a step up to the arm's, in order."""
    steps = _history(folder, arm)["rewards"][from_step : arm.step]
    return tuple(reward for step in steps for reward in step)


def _history(folder: Path, arm: Arm) -> dict[str, Any]:
    path = folder / "arms" / arm.key / HISTORY
    return json.loads(path.read_text()) if path.is_file() else {"rewards": [], "paid": {}}


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
