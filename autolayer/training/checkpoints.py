"""Arm checkpoints: the trained weights and Adam state of an arm at one step.

Only the last two checkpoints of an arm are kept; the final training keeps its own two in a subfolder. history.json
beside them keeps the rewards of every training step and the cost up to each checkpoint. Rank 0 writes and lists the
files. Every rank reads the tensors, so the run folder must be on a file system that the machines of all ranks share.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.run_folder import ARMS, RUN, RunFolder
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.sealed_tensors import load_sealed, save_sealed

HISTORY, FINAL = "history.json", "final/"


@dataclass(frozen=True, kw_only=True)
class History:
    """The training of an arm so far."""

    rewards: tuple[tuple[float, ...], ...]
    """Mean reward of every group, by training step."""
    costs: Mapping[int, Cost]
    """Maps each checkpointed step to the cost of training up to it; step 0 has no entry."""
    metrics: tuple[Mapping[str, float], ...] = ()
    """Metrics of each training step: the mean of every reward function, if there are several, what they log themselves,
    length and truncation, TRL's entropy and KL, and the size of the update. Older histories have fewer or none."""


class Checkpoints:
    """The checkpoints of all arms of a run. Call every method on every rank."""

    def __init__(self, folder: Path, process_group: ProcessGroup, subfolder: str = "") -> None:
        self.folder, self.process_group, self.subfolder = folder, process_group, subfolder
        self._run_folder = RunFolder(folder)

    def save(
        self,
        arm: Arm,
        to_step: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        rewards: Sequence[Sequence[float]],
        cost: Cost,
        metrics: Sequence[Mapping[str, float]] = (),
    ) -> Arm:
        """Saves a checkpoint of an arm that has been trained up to `to_step`, completely or not at all.

        `rewards` (the mean of every group by step), `cost` and `metrics` are those of the steps since `arm.step`. The
        previous checkpoint stays, because an interrupted rung is repeated from it. Checkpoints of later steps are
        deleted, because they belong to an earlier training, whose rewards are overwritten.
        """
        saved = self._at_checkpoint(arm, to_step)

        def write() -> None:
            history = self.history(arm)
            for path in self._files(arm):
                if _step_of(path) > to_step:
                    path.unlink()
            costs = {step: asdict(known) for step, known in history.costs.items() if step <= arm.step}
            costs[to_step] = asdict(history.costs.get(arm.step, Cost()) + cost)
            before = [*history.metrics, *[{}] * arm.step][: arm.step]
            kept = {
                "rewards": [*history.rewards[: arm.step], *rewards],
                "costs": costs,
                "metrics": [*before, *(metrics or [{}] * len(rewards))],
            }
            # The history is written first, because training cannot resume from a checkpoint without one.
            self._run_folder.write(self._history_of(arm), kept, indent=None)
            metadata = {"arm": json.dumps(asdict(saved)), RUN: self._run_folder.signature or ""}
            save_sealed(self.folder / str(saved.checkpoint), tensors, metadata)
            for path in [path for path in self._files(arm) if _step_of(path) < to_step][:-1]:
                path.unlink()

        self.process_group.on_rank_0(write)
        return saved

    def read(self, arm: Arm) -> dict[str, torch.Tensor]:
        """Returns the tensors of the arm's checkpoint (`MasterAdamW.tensors`)."""
        assert arm.checkpoint is not None, "an arm at step 0 has no checkpoint"
        self.history(arm)  # what is trained from here goes on in it
        try:
            tensors, metadata = load_sealed(self.folder / arm.checkpoint)
            if json.loads(metadata.get("arm", "null")) != json.loads(json.dumps(asdict(arm))):
                raise ValueError("it belongs to another arm")
            self._run_folder.check_writer(metadata.get(RUN))
        except (OSError, SafetensorError, ValueError) as error:
            raise self._run_folder.damaged(arm.checkpoint, error) from None
        return tensors

    def cost(self, arm: Arm) -> Cost:
        """Returns the cost of training an arm from step 0 up to its step."""
        if arm.step == 0:
            return Cost()
        return self.history(arm).costs[arm.step]

    def training_rewards(self, arm: Arm, from_step: int) -> tuple[float, ...]:
        """Returns the mean reward of every training group from a step up to the arm's, in order."""
        steps = self.history(arm).rewards[from_step : arm.step]
        return tuple(reward for step in steps for reward in step)

    def latest(self, arm: Arm) -> Arm:
        """Returns the arm at its latest checkpoint on disk, from which an interrupted run resumes."""
        step = self.process_group.on_rank_0(lambda: max(map(_step_of, self._files(arm)), default=0))
        return self._at_checkpoint(arm, step) if step > arm.step else arm

    def of_final_training(self, arm: Arm) -> "Checkpoints":
        """Returns the checkpoints of the final training, which begins at the arm's step if it is not further already.

        They are apart from the race's, which may go on when there is more time, or in another worker.
        """
        final = Checkpoints(self.folder, self.process_group, FINAL)
        if arm.step and final.latest(arm) == arm:
            history = self.history(arm)
            kept = asdict(history)
            self.process_group.on_rank_0(lambda: self._run_folder.write(final._history_of(arm), kept, indent=None))
        return final

    def delete(self, arm: Arm) -> None:
        """Removes all checkpoints of an arm."""
        self.process_group.on_rank_0(lambda: shutil.rmtree(self._arm_folder(arm), ignore_errors=True))

    def history(self, arm: Arm) -> History:
        """Returns the history of an arm, which must reach its step."""

        def read() -> History:
            name = self._history_of(arm)
            found = self._run_folder.read(name) or {"rewards": (), "costs": {}}
            try:
                history = TypeAdapter(History).validate_python(found)
            except ValueError as error:
                raise self._run_folder.damaged(name, error) from None
            if arm.step and (arm.step not in history.costs or len(history.rewards) < arm.step):
                raise self._run_folder.damaged(name, f"it has no step {arm.step}")
            return history

        return self.process_group.on_rank_0(read)

    def _arm_folder(self, arm: Arm) -> Path:
        return self.folder / ARMS / arm.key

    def _files(self, arm: Arm) -> list[Path]:
        return sorted((self._arm_folder(arm) / self.subfolder).glob("step-*.safetensors"))

    def _history_of(self, arm: Arm) -> str:
        return f"{ARMS}/{arm.key}/{self.subfolder}{HISTORY}"

    def _at_checkpoint(self, arm: Arm, step: int) -> Arm:
        moved = replace(arm, step=step)
        return replace(moved, checkpoint=checkpoint_path(moved, self.subfolder))


def checkpoint_path(arm: Arm, subfolder: str = "") -> str:
    """Returns the path of an arm's checkpoint, relative to the run folder."""
    return f"{ARMS}/{arm.key}/{subfolder}step-{arm.step:06d}.safetensors"


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
