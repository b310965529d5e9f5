"""The first step, which arms of one seed share: they start from the same weights with the same prompts and noise.

All of them use the rollouts that the first one sampled. The layers of a race's first rung also share one forward and
backward pass over them (shared_pass.py): the gradient of each is kept beside first.json, in float32 and before it is
clipped, and every arm of these layers takes its first AdamW step by it, at its own learning rate, whenever it starts.

One arm pays for what is shared: the first whose training comes to an end. All of it is on disk, since what an arm costs
must not depend on where a run was interrupted. Several workers share nothing: what they cost would depend on how many
they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.run_folder import FIRST, RunFolder
from autolayer.rollouts.types import Rollouts
from autolayer.training.checkpoints import save_whole

if TYPE_CHECKING:
    from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """What is there of an arm's first step before the arm has made it."""

    rollouts: Rollouts
    payer: str | None = None
    """Key of the arm that has paid for all this; None until one of them is through."""
    layers: tuple[int, ...] = ()
    """Those whose gradient was kept."""
    cost: Cost = Cost()
    """Of the pass that this gradient came of, without the rollouts."""
    kept: tuple[str, ...] = ()
    """The arm's parameters whose gradient lies ready; without any it makes a pass of its own."""


def find(bench: Workbench, arm: Arm, prompts_per_step: int) -> FirstStep | None:
    """What an arm at step 0 shares with others of its seed; None where it is to make all of it."""
    if arm.step > 0 or not bench.shares_first:
        return None
    place = place_of(arm, prompts_per_step)
    found = (bench.folder.read(FIRST) or {}).get(place)
    if found is None:
        return None
    first = FirstStep(
        rollouts=Rollouts.from_dict(found["rollouts"]),
        payer=found["payer"],
        layers=tuple(found.get("layers", ())),
        cost=Cost(**found.get("cost", {})),
    )
    path = _gradient_file(bench.folder, place)
    if arm.layers == "full" or not set(arm.layers) <= set(first.layers) or not path.exists():
        return first
    wanted = bench.parameters(arm.layers)
    try:
        with safe_open(path, framework="pt") as file:
            return replace(first, kept=tuple(name for name in file.keys() if name in wanted))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise bench.folder.damaged(path.name, error) from None


def gradient(bench: Workbench, arm: Arm, prompts_per_step: int, first: FirstStep) -> dict[str, torch.Tensor]:
    """The kept gradient of an arm's parameters, on the device, in every process."""
    parameters = bench.parameters(arm.layers)
    if bench.ranks.leads:
        with safe_open(_gradient_file(bench.folder, place_of(arm, prompts_per_step)), framework="pt") as file:
            tensors = {name: file.get_tensor(name).to(parameters[name].device) for name in first.kept}
    else:  # which may be on another machine
        tensors = {name: torch.empty_like(parameters[name], dtype=torch.float32) for name in first.kept}
    bench.ranks.send(list(tensors.values()))
    return tensors


def keep(folder: RunFolder, arm: Arm, prompts_per_step: int, first: FirstStep) -> None:
    """Leaves what is shared for the other arms. A gradient has to lie there before."""
    entry: dict[str, Any] = {
        "payer": first.payer,
        "rollouts": asdict(first.rollouts),
        "layers": list(first.layers),
        "cost": asdict(first.cost),
    }
    known = folder.read(FIRST) or {}
    folder.write(FIRST, {**known, place_of(arm, prompts_per_step): entry}, indent=None)


def keep_gradient(folder: RunFolder, arm: Arm, prompts_per_step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Leaves the gradient of the shared layers beside it."""
    save_whole(tensors, _gradient_file(folder, place_of(arm, prompts_per_step)))


def forget_gradients(folder: RunFolder) -> None:
    """The race is over: nobody starts from them any more. Four bytes for each parameter of its first rung's layers."""
    for path in folder.path.glob("first-*"):
        path.unlink(missing_ok=True)  # another worker may be at it


def place_of(arm: Arm, prompts_per_step: int) -> str:
    """What arms must have in common to share their first step."""
    return f"{arm.seed}/{prompts_per_step}"


def _gradient_file(folder: RunFolder, place: str) -> Path:
    return folder / f"first-{place.replace('/', '-')}.safetensors"
