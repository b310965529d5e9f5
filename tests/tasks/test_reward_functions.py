"""Several reward functions: their sum, what each does not judge, coroutines, and TRL's own functions as they are."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model
from trl.rewards import (  # pyright: ignore[reportPrivateImportUsage]
    accuracy_reward,  # pyright: ignore[reportPrivateImportUsage]
    get_soft_overlong_punishment,  # pyright: ignore[reportPrivateImportUsage]
    think_format_reward,  # pyright: ignore[reportPrivateImportUsage]
)
from workbench_helpers import make_bench, make_task

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, RewardError
from autolayer.rollouts.rollouts import Rollouts
from autolayer.tasks import SPLITS, Task, load_task
from autolayer.tasks.reward_functions import reward_names
from autolayer.training.train_arm import train_arm

MESSAGES = [{"role": "user", "content": "1+1="}]


def judged(*rewards: Callable[..., Any], weights: Any = None, prompt: Any = "1", **columns: Any) -> Any:
    splits = {split: [{"prompt": prompt, **columns}] for split in ("train",)}
    others = {split: [{"prompt": split, **columns}] if prompt == "1" else
              [{"prompt": [{"role": "user", "content": split}], **columns}] for split in SPLITS[1:]}  # fmt: skip
    task = Task(
        name="t", splits={**splits, **others}, reward=rewards, reward_weights=weights, reward_retries=1,
        max_new_tokens=4,
    )  # fmt: skip
    rows = [task.splits["train"][0]] * 2
    return task.judge(rows, ["<think>\n1\n</think>\n\\boxed{2}", "no"], [[1, 2, 3], [1]])


def first(**_: Any) -> Any:
    return torch.tensor([1.0, 0.5])


def second(**_: Any) -> list[Any]:
    return [True, None]


def test_rewards_are_added_up_with_their_weights() -> None:
    rewards, judgements = judged(first, second, weights=(2.0, -0.5))
    assert rewards == [1.5, 1.0], "a function that does not judge a completion adds nothing to it"
    assert judgements == [{"first": 1.0, "second": 1.0}, {"first": 0.5, "second": None}]
    assert judged(first, second)[0] == [2.0, 0.5]


def test_a_completion_that_nothing_judges_is_refused() -> None:
    with pytest.raises(RewardError, match=r"'second' .* and .*'second' .* returned None for sample 1: prompt '1'"):
        judged(second, second)
    with pytest.raises(RewardError, match="returned nan for sample 0"):
        judged(first, lambda **_: [float("nan"), 1.0])


def test_weights_are_one_for_each_function() -> None:
    with pytest.raises(RewardError, match="1 reward weights for 2 reward functions"):
        judged(first, second, weights=[1.0])
    for weight in (float("nan"), float("inf"), None, "x"):
        with pytest.raises(RewardError, match=r"the reward weights \[1.0, .*\] cannot work"):
            judged(first, second, weights=[1.0, weight])


def test_every_function_has_a_name_of_its_own() -> None:
    class Judge:
        def __call__(self, **_: Any) -> list[float]:
            return [0.0]

    assert reward_names([first, partial(first), Judge(), second]) == ["first", "first_2", "Judge", "second"]


def test_coroutines_run_at_the_same_time() -> None:
    """Each waits for the other, so one after the other they would not end."""
    meet = asyncio.Barrier(2)

    async def one(prompts: list[str], **_: Any) -> list[float]:
        await asyncio.wait_for(meet.wait(), 20)
        return [1.0] * len(prompts)

    class Other:
        async def __call__(self, prompts: list[str], **_: Any) -> list[float]:
            await asyncio.wait_for(meet.wait(), 20)
            return [2.0] * len(prompts)

    assert judged(one, first, Other())[0] == [4.0, 3.5]


def test_only_the_function_that_failed_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolayer.tasks.rewards.LONGEST_PAUSE", 0.0)
    calls: list[str] = []

    async def costly(prompts: list[str], **_: Any) -> list[float]:
        calls.append("costly")
        return [1.0] * len(prompts)

    async def flaky(prompts: list[str], **_: Any) -> list[float]:
        calls.append("flaky")
        if calls.count("flaky") == 1:
            raise ConnectionError("no judge")
        return [1.0] * len(prompts)

    assert judged(costly, flaky)[0] == [2.0, 2.0]
    assert sorted(calls) == ["costly", "flaky", "flaky"]


def test_functions_that_come_with_trl_work_as_they_are() -> None:
    overlong = get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
    columns = {"prompt": MESSAGES, "solution": "$2$"}
    rewards, judgements = judged(accuracy_reward, think_format_reward, overlong, weights=(1, 0.5, 1), **columns)
    assert [list(each.values()) for each in judgements] == [[1.0, 1.0, -0.5], [0.0, 0.0, 0.0]]
    assert rewards == [1.0, 0.0]
    with pytest.raises(RewardError, match="accuracy_reward.*returned None for sample 0"):
        judged(accuracy_reward, prompt=MESSAGES, solution="no answer that could be read")


def test_means_are_logged_by_name_over_what_was_judged() -> None:
    def part(judgements: list[dict[str, float | None]], metrics: dict[str, float]) -> Rollouts:
        n = len(judgements)
        return Rollouts.of_one_turn(
            [[1]] * n, [[2]] * n, ["x"] * n, [0.0] * n, [True] * n, 1, metrics=metrics, judgements=judgements
        )

    parts = [part([{"f": 1.0, "g": None}], {}), part([{"f": 0.0, "g": 0.5}, {"f": 0.5, "g": 1.0}], {"seen": 3.0})]
    assert Rollouts.joined(parts, 1).logged == {"rewards/f/mean": 0.5, "rewards/g/mean": 0.75, "seen": 3.0}
    assert part([{"f": 1.0}], {}).logged == {}, "one function's mean is the reward"


def length(completion_ids: list[list[int]], log_metric: Callable[..., None], **_: Any) -> list[float]:
    log_metric("seen", 1)
    log_metric("seen", torch.tensor(2.0))
    log_metric("odd", float("nan"))
    return [float(len(ids)) for ids in completion_ids]


def parity(completion_ids: list[list[int]], **_: Any) -> list[bool]:
    return [sum(ids) % 2 == 0 for ids in completion_ids]


def test_training_logs_every_reward_by_step(tmp_path: Path) -> None:
    task = replace(make_task(length), reward=[length, parity])
    bench = make_bench(build_model("qwen3"), tmp_path, task)
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=1e-3, seed=0), 1).arm
    train_arm(bench, arm, 2)
    history = json.loads((tmp_path / "arms" / arm.key / "history.json").read_text())
    assert len(history["metrics"]) == 2
    for rewards, metrics in zip(history["rewards"], history["metrics"], strict=True):
        assert {"seen", "rewards/length/mean", "rewards/parity/mean"} <= set(metrics) and metrics["seen"] == 1.5
        total = metrics["rewards/length/mean"] + metrics["rewards/parity/mean"]
        assert sum(rewards) / len(rewards) == pytest.approx(total)
    found = bench.evaluate("eval", 2, seed=0)
    assert found.score == pytest.approx(found.metrics["rewards/length/mean"] + found.metrics["rewards/parity/mean"])


def test_several_rewards_are_options(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def f(**_): return [1.0]\ndef g(completions, **_): return [0.5]\n")
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"prompt": s, "split": s}) for s in SPLITS))
    given: dict[str, Any] = {"model": "m", "data": tmp_path / "d.jsonl"}
    both = Config(**given, reward=[f"{tmp_path}/r.py:f", f"{tmp_path}/r.py:g"], reward_weights="1,0.2")
    task = load_task(both, chat=False)
    assert task.score(task.splits["eval"], ["x"]) == [1.1]
    single = Config(**given, reward=[f"{tmp_path}/r.py:f"])
    assert single.signature == Config(**given, reward=f"{tmp_path}/r.py:f").signature
    assert (
        "reward_weights" not in single.signed() and both.signature != both.replace(reward_weights=(1.0, 1.0)).signature
    )


@pytest.mark.parametrize(
    ("weights", "words"),
    [("1", "has 1 numbers for 2"), ("1,x", "give numbers such as 1,0.2"), ([1, float("inf")], "of at most 1000"),
     ([1, 2000], "of at most 1000")],
)  # fmt: skip
def test_weights_that_cannot_be_used(weights: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(model="m", data="d.jsonl", reward=["a.py:f", "b.py:g"], reward_weights=weights)
