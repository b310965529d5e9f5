"""Arm checkpoints: the trained weights and Adam state of an arm at one step.

Only the last two checkpoints of an arm are kept. history.json beside them keeps the rewards of every training step and
the cost up to each checkpoint. Rank 0 writes and lists the files. Every rank reads the tensors, so the run folder must
be on a file system that the machines of all ranks share.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError
from autolayer.distributed.process_group import ProcessGroup

HISTORY = "history.json"


@dataclass(frozen=True, kw_only=True)
class History:
    """The training of an arm so far."""

    rewards: tuple[tuple[float, ...], ...]
    """Mean reward of every group, by training step."""
    costs: Mapping[int, Cost]
    """Maps each checkpointed step to the cost of training up to it; step 0 has no entry."""


class Checkpoints:
    """The checkpoints of all arms of a run. Call every method on every rank."""

    def __init__(self, folder: Path, process_group: ProcessGroup) -> None:
        self.folder, self.process_group = folder, process_group

    def save(
        self,
        arm: Arm,
        to_step: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        rewards: Sequence[Sequence[float]],
        cost: Cost,
    ) -> Arm:
        """Saves a checkpoint of an arm that has been trained up to `to_step`, completely or not at all.

        `rewards` and `cost` are those of the steps since `arm.step`: the mean reward of every group by step. The
        previous checkpoint stays, because an interrupted rung is repeated from it. Checkpoints of later steps are
        deleted, because they belong to an earlier training, whose rewards are overwritten.
        """
        saved = _at_checkpoint(arm, to_step)
        self.process_group.on_rank_0(lambda: self._save(arm, saved, tensors, rewards, cost))
        return saved

    def read(self, arm: Arm) -> dict[str, torch.Tensor]:
        """Returns the tensors of the arm's checkpoint (`MasterAdamW.tensors`)."""
        assert arm.checkpoint is not None, "an arm at step 0 has no checkpoint"
        path = self.folder / arm.checkpoint
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
        return tensors

    def cost(self, arm: Arm) -> Cost:
        """Returns the cost of training an arm from step 0 up to its step."""
        if arm.step == 0:
            return Cost()
        costs = self._history(arm).costs
        if arm.step not in costs:
            raise self._damaged(arm, f"it has no step {arm.step}")
        return costs[arm.step]

    def training_rewards(self, arm: Arm, from_step: int) -> tuple[float, ...]:
        """Returns the mean reward of every training group from a step up to the arm's, in order."""
        steps = self._history(arm).rewards[from_step : arm.step]
        return tuple(reward for step in steps for reward in step)

    def latest(self, arm: Arm) -> Arm:
        """Returns the arm at its latest checkpoint on disk, from which an interrupted run resumes."""
        step = self.process_group.on_rank_0(lambda: max(map(_step_of, self._files(arm)), default=0))
        return _at_checkpoint(arm, step) if step > arm.step else arm

    def delete(self, arm: Arm) -> None:
        """Removes all checkpoints of an arm."""
        self.process_group.on_rank_0(lambda: shutil.rmtree(self._arm_folder(arm), ignore_errors=True))

    def _save(
        self,
        arm: Arm,
        saved: Arm,
        tensors: Mapping[str, torch.Tensor],
        rewards: Sequence[Sequence[float]],
        cost: Cost,
    ) -> None:
        folder, history = self._arm_folder(arm), self._history(arm)
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._files(arm):
            if _step_of(path) > saved.step:
                path.unlink()
        costs = {step: asdict(known) for step, known in history.costs.items() if step <= arm.step}
        costs[saved.step] = asdict(history.costs.get(arm.step, Cost()) + cost)
        kept = {"rewards": [*history.rewards[: arm.step], *rewards], "costs": costs}
        # The history is written first, because training cannot resume from a checkpoint without one.
        _replace(folder / HISTORY, lambda path: path.write_text(json.dumps(kept)))
        about = {"arm": json.dumps(asdict(saved))}
        _replace(self.folder / name_of(saved), lambda path: save_file(dict(tensors), path, about))
        for path in [path for path in self._files(arm) if _step_of(path) < saved.step][:-1]:
            path.unlink()

    def _history(self, arm: Arm) -> History:
        def read() -> History:
            path = self._arm_folder(arm) / HISTORY
            try:
                return TypeAdapter(History).validate_json(path.read_text())
            except FileNotFoundError:
                return History(rewards=(), costs={})
            except ValueError as error:
                raise self._damaged(arm, str(error).splitlines()[0]) from None

        return self.process_group.on_rank_0(read)

    def _damaged(self, arm: Arm, reason: str) -> RunFolderError:
        return RunFolderError(
            f"{self._arm_folder(arm) / HISTORY} is damaged ({reason}): restore it, or delete the run folder and start "
            "again."
        )

    def _arm_folder(self, arm: Arm) -> Path:
        return self.folder / "arms" / arm.key

    def _files(self, arm: Arm) -> list[Path]:
        return sorted(self._arm_folder(arm).glob("step-*.safetensors"))


def name_of(arm: Arm) -> str:
    """Returns the path of an arm's checkpoint, relative to the run folder."""
    return f"arms/{arm.key}/step-{arm.step:06d}.safetensors"


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _at_checkpoint(arm: Arm, step: int) -> Arm:
    moved = replace(arm, step=step)
    return replace(moved, checkpoint=name_of(moved))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file completely or not at all."""
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.part")  # another worker may be writing the same file
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
