"""GiGPO's advantages against numbers worked out by hand, against GRPO where they must agree, and over two processes."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from launch_helpers import launch

from autolayer.core.config import GiGPOConfig
from autolayer.core.errors import ConfigError
from autolayer.rollouts.rollouts import Turn
from autolayer.training.advantages import EPSILON, discounted, step_advantages


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
    found = step_advantages(group, 3, GiGPOConfig(gamma=0.5, omega=2.0))
    # Returns 1, 2, 0. Discounted: (.5, 1), (.5, 1, 2), (0, 0, 0).
    first, second, third = grpo([1.0, 2.0, 0.0])
    first_a, second_a, again_a, third_a = grpo([0.5, 0.5, 2.0, 0.0])
    first_b, third_b = grpo([1.0, 0.0])
    wanted = [
        [first + 2 * first_a, first + 2 * first_b],
        [second + 2 * second_a, second, second + 2 * again_a],
        [third + 2 * third_a, third + 2 * third_b, third],
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
    assert step_advantages(walks, 3, GiGPOConfig()) == [[0.0] * 3] * 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"omega": -1.0}, "omega"), ({"gamma": 1.5}, "gamma")],
)
def test_settings_that_cannot_work_are_refused(bad: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GiGPOConfig(**bad)


TWO_PROCESSES = """
import os
from pathlib import Path
import torch

def advantages(folder, algorithm, inputs):
    from multi_turn_helpers import make_task, often_ending
    from workbench_helpers import make_bench
    from autolayer.core.arms import Arm
    from autolayer.training.optimizer import MasterAdamW
    from autolayer.distributed.process_group import join_process_group
    from autolayer.training.train_arm import train_rows
    from autolayer.training.grpo_trainer import LayerGRPOTrainer
    bench = make_bench(often_ending(), folder, task=make_task(), algorithm=algorithm, prompts_per_step=3, group_size=2)
    arm = Arm(layers=(1,), learning_rate=1e-3, seed=9)
    for parameter in bench.parameters(arm.layers).values():
        parameter.requires_grad_(True)
    optimizer = MasterAdamW(bench.parameters((1,)), lr=1e-3)
    bench.process_group = join_process_group()
    rows = train_rows(bench, 9, 0, 1)
    trainer = LayerGRPOTrainer(
        bench=bench, arm=arm, rows=rows, num_steps=1, optimizer=optimizer, on_rollouts=lambda rollouts: None
    )
    trainer.model.train()
    found = trainer._generate_and_score_completions(inputs)
    assert trainer.had_advantage
    rollouts = trainer.rollouts
    return found["advantages"], rollouts.ungrouped(trainer.own)

rank, num = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
size = 6 // num  # three prompts, two episodes each: with two processes the middle group lies across
inputs = [{"prompt": str(i // 2)} for i in range(size * rank, size * (rank + 1))]
saved = {}
for algorithm in ("gigpo", "grpo"):
    values, rollouts = advantages(Path(f"{algorithm}{num}{rank}"), algorithm, inputs)
    if values.dim() == 1:
        values = values[:, None]
    saved[algorithm] = [(v[: len(ids)].tolist(), ids) for v, ids in zip(values, rollouts.completion_ids)]
torch.save(saved, f"found-{num}-{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_find_the_advantages_of_one(tmp_path: Path) -> None:
    """Sampling, rewarding and comparing for real, over gloo; episodes of unequal lengths, a group across both."""
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    for num in (2, 1):
        done = launch(num, cwd=tmp_path, program="two.py")
        assert done.returncode == 0, done.stderr[-3000:]
    halves, whole = (
        [torch.load(tmp_path / f"found-2-{rank}.pt") for rank in (0, 1)],
        torch.load(tmp_path / "found-1-0.pt"),
    )
    for algorithm in ("gigpo", "grpo"):
        joined = halves[0][algorithm] + halves[1][algorithm]
        assert len({len(ids) for _, ids in joined}) > 1 and any(any(values) for values, _ in joined)
        for (values, ids), (wanted, wanted_ids) in zip(joined, whole[algorithm], strict=True):
            assert ids == wanted_ids and values == pytest.approx(wanted, abs=1e-6)
