"""A user's reward may change little in the process, and gets the arguments that it gets in TRL."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from tiny_models import build_model
from workbench_helpers import make_bench, make_task

from autolayer.core.arms import Arm
from autolayer.core.errors import RewardError
from autolayer.tasks.custom import load_reward
from autolayer.tasks.reward_functions import call_rewards
from autolayer.tasks.rewards import LARGEST
from autolayer.training.train_arm import train_arm


def called(reward: Any, count: int = 2) -> list[float]:
    columns = {"prompts": ["1"] * count, "completions": ["2"] * count, "completion_ids": [[2]] * count}
    return call_rewards([reward], columns)[0]


def test_a_reward_cannot_move_the_process(tmp_path: Path) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        os.chdir(tmp_path)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return [0.0] * len(completions)

    before = os.getcwd()
    called(reward)
    assert os.getcwd() == before and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_rewards_whose_squares_do_not_fit_are_refused() -> None:
    assert called(lambda **_: [LARGEST, -LARGEST]) == [LARGEST, -LARGEST]
    with pytest.raises(RewardError, match="a finite number of at most 1e.15"):
        called(lambda **_: [LARGEST * 2, 0.0])


def test_a_reward_sees_the_step_of_the_whole_training(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def reward(completion_ids: list[list[int]], trainer_state: Any, **_: Any) -> list[float]:
        seen.append((trainer_state.global_step, trainer_state.max_steps))
        return [float(sum(ids) % 7) for ids in completion_ids]

    bench = make_bench(build_model("qwen3"), tmp_path, make_task(reward), steps=9)
    bench.sample(bench.task.splits["probe"][:2], [0, 1])
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=1e-3, seed=0), 2).arm
    train_arm(bench, arm, 3)
    bench.evaluate("eval", 2, seed=0)
    assert seen == [(0, 9), (0, 9), (1, 9), (2, 9), (9, 9)], "evaluations judge as the end of training does"


def test_worker_processes_of_a_reward_find_its_file(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(
        "from multiprocessing import get_context\n"
        "def judge(text): return float(len(text))\n"
        "def score(completions, **kwargs):\n"
        "    with get_context('spawn').Pool(1) as pool: return pool.map(judge, completions)\n"
    )
    program = (
        "import json, sys\n"
        "from autolayer.tasks.custom import load_reward\n"
        "from autolayer.tasks.reward_functions import call_rewards\n"
        "if __name__ == '__main__':\n"
        "    reward = load_reward('my_reward.py:score')\n"
        "    given = dict(prompts=['', ''], completions=['a', 'bb'], completion_ids=[[], []])\n"
        "    print(json.dumps(call_rewards([reward], given)[0]))\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, 2.0]


def test_a_file_with_the_name_of_a_module_shadows_nothing(tmp_path: Path) -> None:
    file = tmp_path / "json.py"
    file.write_text("def score(**kwargs): return [1.0]")
    assert called(load_reward(f"{file}:score"), 1) == [1.0]
    assert sys.modules["json"] is json
    file.write_text("def score(**kwargs): return [2.0]")
    assert called(load_reward(f"{file}:score"), 1) == [2.0], "a file that changed is read again"


def test_a_reward_may_delete_the_folder_that_it_went_to() -> None:
    def reward(**_: Any) -> list[float]:
        with TemporaryDirectory() as folder:
            os.chdir(folder)
        return [1.0, 0.0]

    before = os.getcwd()
    assert called(reward) == [1.0, 0.0] and os.getcwd() == before


def test_a_reward_cannot_change_how_torch_computes() -> None:
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)

    def reward(completions: list[str], **_: Any) -> list[float]:
        torch.set_default_device("meta")
        autocast.__enter__()
        signal.alarm(100)
        warnings.simplefilter("error")
        sys.stdout = sys.stderr = None
        return [0.0] * len(completions)

    before, filters = (sys.stdout, sys.stderr), list(warnings.filters)
    try:
        called(reward)
        assert torch.zeros(1).device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        assert signal.alarm(0) == 0 and (sys.stdout, sys.stderr) == before
        assert warnings.filters == filters
    finally:
        autocast.__exit__(None, None, None)
        torch.set_default_device(None)
        signal.alarm(0)


def test_a_reward_that_leaves_inference_mode_on_is_refused() -> None:
    mode = torch.inference_mode()

    def reward(completions: list[str], **_: Any) -> list[float]:
        mode.__enter__()
        return [0.0] * len(completions)

    try:
        with pytest.raises(RewardError, match="leaves torch.inference_mode on"):
            called(reward)
    finally:
        mode.__exit__(None, None, None)
