"""Checkpoints keep an arm whole, and refuse damaged files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import build_model
from workbench_helpers import assert_equal, make_bench

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError
from autolayer.distributed.process_group import ProcessGroup
from autolayer.training.checkpoints import HISTORY, Checkpoints
from autolayer.training.train_arm import train_arm

ARM = Arm(layers=(1,), learning_rate=1e-3, seed=0)


def checkpoints_in(folder: Path) -> Checkpoints:
    return Checkpoints(folder, ProcessGroup())


def save(checkpoints: Checkpoints, arm: Arm, step: int) -> Arm:
    rewards = [[float(index)] for index in range(arm.step, step)]
    tensors = {"w": torch.tensor([float(step)])}
    return checkpoints.save(arm, step, tensors, rewards=rewards, cost=Cost(generated_tokens=step - arm.step))


def test_the_newest_two_stay_and_the_history_of_all(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    saved = [arm := ARM, arm := save(kept, arm, 2), arm := save(kept, arm, 4), arm := save(kept, arm, 8)]
    assert [(tmp_path / str(each.checkpoint)).exists() for each in saved[1:]] == [False, True, True]
    assert kept.read(arm)["w"].item() == 8
    assert [kept.cost(each) for each in saved] == [Cost(generated_tokens=step) for step in (0, 2, 4, 8)]
    assert kept.training_rewards(arm, 1) == (1, 2, 3, 4, 5, 6, 7)
    assert kept.latest(ARM) == kept.latest(saved[2]) == arm
    assert kept.latest(replace(ARM, seed=1)) == replace(ARM, seed=1)
    kept.delete(arm)
    assert kept.latest(ARM) == ARM and kept.cost(ARM) == Cost()


def test_the_final_training_and_the_race_leave_each_other_what_they_need(tmp_path: Path) -> None:
    race = checkpoints_in(tmp_path)
    rung = save(race, save(race, ARM, 2), 4)
    final, arm = race.of_final_training(rung), rung
    for step in (6, 8, 10):
        arm = save(final, arm, step)
    assert race.latest(ARM) == rung and race.read(rung)["w"].item() == 4
    further = save(race, rung, 7)
    again = race.of_final_training(further)
    assert again.latest(further) == arm and again.read(arm)["w"].item() == 10
    assert again.cost(arm) == Cost(generated_tokens=10) and again.training_rewards(arm, 3) == (3, 4, 5, 6, 7, 8, 9)
    furthest = save(race, further, 12)
    last = race.of_final_training(furthest)
    assert last.latest(furthest) == furthest and last.cost(save(last, furthest, 14)) == Cost(generated_tokens=14)


def test_training_again_to_a_shorter_step_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path / "again")
    train_arm(bench, train_arm(bench, ARM, 2).arm, 4)
    shorter = train_arm(bench, ARM, 3).arm
    assert bench.checkpoints.latest(ARM) == shorter, "the arm of 4 steps belongs to rewards that are overwritten"
    longer = train_arm(bench, shorter, 5).arm
    other = make_bench(build_model("qwen3"), tmp_path / "once")
    expected = train_arm(other, ARM, 5)
    assert bench.checkpoints.training_rewards(longer, 0) == expected.train_rewards_P
    assert_equal(bench.checkpoints.read(longer), other.checkpoints.read(expected.arm))


def test_arms_whose_rates_nearly_agree_keep_apart(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    for arm in [save(kept, replace(ARM, learning_rate=rate), 2) for rate in (3.00001e-4, 3.00002e-4)]:
        assert kept.read(arm)["w"].item() == 2


def test_a_checkpoint_of_another_arm_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    arm = save(kept, ARM, 2)
    with pytest.raises(RunFolderError, match="damaged"):
        kept.read(replace(arm, seed=1))
    path = tmp_path / str(arm.checkpoint)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunFolderError, match="is damaged .*together to train again"):
        kept.read(arm)
    path.unlink()
    with pytest.raises(RunFolderError, match="is damaged .*together to train again"):
        kept.read(arm)


@pytest.mark.parametrize("text", ["", '{"rewards": [[0.5', "[]", '{"rewards": []}', '{"rewards": [], "costs": {}}'])
def test_a_hollow_history_is_damage(text: str, tmp_path: Path) -> None:
    kept = checkpoints_in(tmp_path)
    arm = save(kept, ARM, 2)
    (tmp_path / str(arm.checkpoint)).with_name(HISTORY).write_text(text)
    with pytest.raises(RunFolderError, match="history.json is damaged .*delete .*arms and the study"):
        kept.cost(arm)
