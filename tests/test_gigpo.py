"""GiGPO's advantages against numbers worked out by hand, against GRPO where they must agree, and over two processes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from autolayer.config import GiGPOConfig
from autolayer.errors import ConfigError, UnknownNameError
from autolayer.gigpo import EPSILON, discounted, step_advantages
from autolayer.rollouts import Turn


def episode(*steps: tuple[str, float]) -> tuple[Turn, ...]:
    return tuple(Turn(3 * i, 3 * i + 2, reward, state) for i, (state, reward) in enumerate(steps))


def grpo(returns: Sequence[float]) -> list[float]:
    """TRL's GRPO: unbiased deviation, 1e-4 added."""
    values = np.array(returns)
    return list((values - values.mean()) / (values.std(ddof=1) + EPSILON))


def test_discounted_returns() -> None:
    assert discounted([1.0, 0.0, 4.0], 0.5) == [1 + 0 + 1.0, 2.0, 4.0]
    assert discounted([1.0, 2.0, 3.0], 1.0) == [6.0, 5.0, 3.0]
    assert discounted([1.0, 2.0, 3.0], 0.0) == [1.0, 2.0, 3.0]


def test_a_group_worked_out_by_hand() -> None:
    """Three episodes; state a is met four times, b twice, c and d once."""
    group = [
        episode(("a", 0.0), ("b", 1.0)),
        episode(("a", 0.0), ("c", 0.0), ("a", 2.0)),
        episode(("a", 0.0), ("b", 0.0), ("d", 0.0)),
    ]
    found = step_advantages(group, 3, GiGPOConfig(gamma=0.5, omega=2.0, normalize="none"))
    # Returns 1, 2, 0 with mean 1. Discounted: (.5, 1), (.5, 1, 2), (0, 0, 0).
    # State a: .5, .5, 2, 0 with mean .75; b: 1, 0 with mean .5.
    wanted = [
        [0 + 2 * (0.5 - 0.75), 0 + 2 * 0.5],
        [1 + 2 * (0.5 - 0.75), 1.0, 1 + 2 * (2 - 0.75)],
        [-1 + 2 * (0 - 0.75), -1 - 2 * 0.5, -1.0],
    ]
    assert found == [pytest.approx(row) for row in wanted]


def test_deviations_are_those_of_what_is_compared() -> None:
    group = [episode(("a", 0.0), ("b", 1.0)), episode(("a", 0.0), ("b", 0.0), ("c", 4.0))]
    found = step_advantages(group, 2, GiGPOConfig(gamma=1.0))
    returns = (1.0 - 4.0) / 2 / (3 / math.sqrt(2) + EPSILON)
    assert found[0] == pytest.approx([2 * returns, 2 * returns])  # states a and b: returns of 1 against 4 as well
    assert found[1] == pytest.approx([-2 * returns, -2 * returns, -returns])


def test_tasks_are_never_compared_with_each_other() -> None:
    one, other = [episode(("a", 1.0)), episode(("a", 0.0))], [episode(("a", 5.0)), episode(("a", 3.0))]
    config = GiGPOConfig()
    assert step_advantages(one + other, 2, config) == step_advantages(one, 2, config) + step_advantages(
        other, 2, config
    )


def _walks(num: int, *, distinct: bool) -> list[tuple[Turn, ...]]:
    """Random episodes of unequal length; the first state is theirs all, unless every state is made distinct."""
    rng = np.random.default_rng(0)
    walks = []
    for index in range(num):
        states = [f"state {index}.{turn}" if distinct or turn else "start" for turn in range(rng.integers(1, 6))]
        walks.append(episode(*((state, float(rng.integers(0, 3))) for state in states)))
    return walks


@pytest.mark.parametrize("distinct", [True, False])
def test_it_is_grpo_without_weight_on_states_or_where_no_state_repeats(distinct: bool) -> None:
    walks = _walks(8, distinct=distinct)
    found = step_advantages(walks, 4, GiGPOConfig(omega=1.0 if distinct else 0.0))
    returns = [sum(turn.reward for turn in walk) for walk in walks]
    wanted = grpo(returns[:4]) + grpo(returns[4:])
    for row, value, walk in zip(found, wanted, walks, strict=True):
        assert row == pytest.approx([value] * len(walk), abs=1e-12)
    with_states = step_advantages(walks, 4, GiGPOConfig())
    assert (with_states == found) == distinct


def test_equal_values_give_exactly_nothing() -> None:
    walks = [episode(("a", 0.1), ("b", 0.1), ("c", 0.1))] * 3
    for normalize in ("std", "none"):
        assert step_advantages(walks, 3, GiGPOConfig(normalize=normalize)) == [[0.0] * 3] * 3


def test_similar_states_are_one_where_it_is_asked_for() -> None:
    group = [episode(("you are in the hall", 1.0)), episode(("you are in the hall.", 0.0))]
    assert step_advantages(group, 2, GiGPOConfig(omega=1.0)) == step_advantages(group, 2, GiGPOConfig(omega=0.0))
    similar = step_advantages(group, 2, GiGPOConfig(similarity=0.9))
    assert similar == [pytest.approx([2 * grpo([1, 0])[0]]), pytest.approx([2 * grpo([1, 0])[1]])]
    other = [episode(("you are in the hall", 1.0)), episode(("nothing at all here", 0.0))]
    assert step_advantages(other, 2, GiGPOConfig(similarity=0.9)) == step_advantages(other, 2, GiGPOConfig())


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"omega": -1.0}, "omega"), ({"gamma": 1.5}, "gamma"), ({"similarity": 0.0}, "similarity")],
)
def test_settings_that_cannot_work_are_refused(bad: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GiGPOConfig(**bad)
    with pytest.raises(UnknownNameError, match="std"):
        GiGPOConfig(normalize="batch")


TWO_PROCESSES = """
import os, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

def work(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    from accelerate import Accelerator
    from autolayer.config import GiGPOConfig
    from autolayer.gigpo import step_advantages
    from autolayer.rollouts import Rollouts, Turn
    from autolayer.trainer import LayerGRPOTrainer
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    def turn(i, t):
        return Turn(3 * t, 3 * t + 2, float((i * t) % 3), f"{i % 2}{t}" if t else "s")
    walks = [tuple(turn(i, t) for t in range(1 + i % 4)) for i in range(6)]
    mine = walks[3 * rank : 3 * rank + 3]  # groups of two: the middle one lies across
    trainer = LayerGRPOTrainer.__new__(LayerGRPOTrainer)
    trainer.accelerator, trainer.group_size, trainer.gigpo = accelerator, 2, GiGPOConfig()
    ids = [[0] * walk[-1].stop for walk in mine]
    rollouts = Rollouts(prompt_ids=[[1]] * 3, completion_ids=ids, turns=mine, texts=[""] * 3, rewards=[0.0] * 3,
                        finished=[True] * 3, prefilled=[1] * 3, group_size=1)
    found = trainer._step_advantages(rollouts, 12)
    wanted = step_advantages(walks, 2, GiGPOConfig())[3 * rank : 3 * rank + 3]
    for row, walk, values in zip(found, mine, wanted):
        expected = torch.zeros(12)
        for turn, value in zip(walk, values):
            expected[turn.start:turn.stop] = value
        assert torch.allclose(row, expected), (rank, row, expected)
    assert bool(found.any())
    dist.barrier(); dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, args=(int(sys.argv[1]),), nprocs=2)
"""


@pytest.mark.slow
def test_groups_across_two_processes_of_unequal_lengths(tmp_path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    done = subprocess.run([sys.executable, str(script), str(port)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
