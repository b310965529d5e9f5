"""The contract of a task: what its reward may return, which splits it needs, and what is refused with a sentence."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import torch

from autolayer.core.errors import DataError, RewardError
from autolayer.tasks import SPLITS, Task, split_of, split_rows
from autolayer.tasks.rewards import text_of

MESSAGES = [{"role": "user", "content": "1+1="}]


def equals(prompts, completions, answer, **kwargs):
    return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]


def make_splits(num: int = 2, **columns: Any) -> dict[str, list[dict[str, Any]]]:
    return {split: [{"prompt": f"{split} {i}", "answer": str(i), **columns} for i in range(num)] for split in SPLITS}


def make_task(reward: Any = equals, **fields: Any) -> Task:
    return Task(**{"name": "toy", "splits": make_splits(), "reward": reward, "max_new_tokens": 8, **fields})


def returns(values: Any) -> Any:
    """A reward that returns this, whatever the completions."""

    def constant_reward(**kwargs):
        return values

    return constant_reward


def score(reward: Any, num: int = 2) -> list[float]:
    task = make_task(reward, splits=make_splits(num))
    return task.score(task.splits["train"], [str(i) for i in range(num)])


# The reward: what it is called with, and what it may return.


def test_score_calls_the_reward_as_trl_does() -> None:
    seen: dict[str, Any] = {}

    def reward(**kwargs):
        seen.update(kwargs)
        kwargs["log_extra"]("column", ["x"])
        kwargs["log_metric"]("name", 1.0)
        return [1.0, 0.0]

    task = make_task(reward)
    assert task.score(task.splits["train"], ["a", "b"], [[1], [2, 3]]) == [1.0, 0.0]
    assert seen["prompts"] == ["train 0", "train 1"] and seen["completions"] == ["a", "b"]
    assert seen["answer"] == ["0", "1"] and seen["completion_ids"] == [[1], [2, 3]]
    assert seen["trainer_state"] is None and "prompt" not in seen


def test_message_prompts_get_message_completions() -> None:
    def reward(prompts, completions, **kwargs):
        assert completions == [[{"role": "assistant", "content": "2"}]]
        return [float(text_of(completions[0]) == "2")]

    splits = {split: [{"prompt": [{"role": "user", "content": split}]}] for split in SPLITS}
    task = make_task(reward, splits=splits)
    assert task.is_chat and task.score(task.splits["eval"], ["2"]) == [1.0]


def test_no_rows_no_rewards() -> None:
    assert make_task().score([], []) == []


def test_as_many_completions_as_rows() -> None:
    task = make_task()
    with pytest.raises(RewardError, match="3 completions for 2 rows"):
        task.score(task.splits["train"], ["a", "b", "c"])


@pytest.mark.parametrize(
    "values",
    [
        [1, 0],
        (True, False),
        np.array([1.0, 0.0]),
        [np.float32(1), np.bool_(False)],
        torch.tensor([1.0, 0.0]),
        [torch.tensor(1), torch.tensor(0.0, requires_grad=True)],
        (value for value in (1.0, 0.0)),
    ],
    ids=lambda values: type(values).__name__,
)
def test_every_kind_of_number_is_a_reward(values: Any) -> None:
    found = score(returns(values))
    assert found == [1.0, 0.0] and all(type(value) is float for value in found)


@pytest.mark.parametrize(
    "bad",
    [None, float("nan"), float("inf"), -np.inf, torch.tensor(float("nan")), "1", [1.0], 1j, 1e39, 10**400],
    ids=repr,
)
def test_what_is_no_finite_number_is_refused_with_its_sample(bad: Any) -> None:
    with pytest.raises(
        RewardError, match=r"constant_reward.*test_tasks.py:\d+.*sample 1: prompt 'train 1', completion '1'"
    ):
        score(returns([1.0, bad]))


@pytest.mark.parametrize("values", [None, 1.0, "12", {"a": 1, "b": 2}, torch.tensor(1.0)], ids=repr)
def test_what_is_no_list_is_refused(values: Any) -> None:
    with pytest.raises(RewardError):
        score(returns(values))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_one_number_per_completion(count: int) -> None:
    with pytest.raises(RewardError, match=f"returned {count} numbers for 2 completions.*prompt 'train 0'"):
        score(returns([1.0] * count))


def test_a_reward_that_raises_is_named_with_its_line_and_sample() -> None:
    def broken(completions, **kwargs):
        return [1 / 0 for _ in completions]

    with pytest.raises(RewardError, match=r"broken.*test_tasks.py:\d+.*ZeroDivisionError.*'train 0'") as caught:
        score(broken)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_generator_that_raises_is_caught_too() -> None:
    def lazy(completions, **kwargs):
        return (1 / 0 for _ in completions)

    with pytest.raises(RewardError, match="ZeroDivisionError"):
        score(lazy)


def test_long_samples_are_shortened() -> None:
    task = make_task(returns([None]))
    with pytest.raises(RewardError) as caught:
        task.score(task.splits["train"][:1], ["x" * 10_000])
    assert len(str(caught.value)) < 600


def test_a_reward_without_kwargs_is_refused_before_anything_is_loaded() -> None:
    def reward(prompts, completions):
        return [1.0, 1.0]

    with pytest.raises(RewardError, match=r"unexpected keyword argument 'completion_ids'.*Add \*\*kwargs"):
        make_task(reward)


def test_a_reward_that_asks_for_a_missing_column_is_refused() -> None:
    def reward(completions, solution, **kwargs):
        return [1.0, 1.0]

    with pytest.raises(RewardError, match="missing a required argument: 'solution'.*answer"):
        make_task(reward)


@pytest.mark.parametrize("reward", [None, "a-reward-model", 3])
def test_a_reward_must_be_callable(reward: Any) -> None:
    with pytest.raises(RewardError, match="give a function"):
        make_task(reward)


def test_an_async_reward_is_awaited_even_inside_a_loop() -> None:
    async def reward(completions, **kwargs):
        await asyncio.sleep(0)
        return [1.0 for _ in completions]

    async def notebook():
        return score(reward)

    assert score(reward) == [1.0, 1.0] and asyncio.run(notebook()) == [1.0, 1.0]


def test_an_object_can_be_a_reward() -> None:
    class Judge:
        def __call__(self, completions, **kwargs):
            raise KeyError("x")

    with pytest.raises(RewardError, match=r"Judge.*test_tasks.py:\d+"):
        score(Judge())


def test_a_reward_that_writes_to_its_inputs_changes_nothing_but_its_copies() -> None:
    def greedy(prompts, completions, completion_ids, answer, **_):
        for prompt, ids, words in zip(prompts, completion_ids, answer, strict=True):
            prompt.append({"role": "user", "content": "more"})
            ids.reverse()
            words.clear()
        completions.clear()
        return [1.0] * len(prompts)

    splits = {
        split: [{"prompt": [{"role": "user", "content": f"{split} {i}"}], "answer": ["a"]} for i in range(3)]
        for split in SPLITS
    }
    task = Task(name="greedy", splits=splits, reward=greedy, max_new_tokens=4)
    rows, ids = list(task.splits["train"]), [[1, 2], [3, 4], [5, 6]]
    before = json.dumps(rows)
    assert task.score(rows, ["x"] * 3, ids) == [1.0] * 3
    assert json.dumps(rows) == before and ids == [[1, 2], [3, 4], [5, 6]]


# The splits.


def test_split_of_never_changes() -> None:
    assert [split_of(prompt) for prompt in ("0", "3", "7", MESSAGES)] == ["train", "eval", "select", "train"]
    assert split_of([{"content": "1+1=", "role": "user"}]) == split_of(MESSAGES), "the order of keys is no difference"


def test_split_rows_is_about_70_10_10_10_in_any_order() -> None:
    rows = [{"prompt": f"question {i}"} for i in range(2000)]
    splits = split_rows(rows)
    assert splits == split_rows(reversed(rows))
    for split, share in zip(SPLITS, (0.7, 0.1, 0.1, 0.1), strict=True):
        assert abs(len(splits[split]) / 2000 - share) < 0.03


def broken_splits(**changes: Any) -> dict[str, Any]:
    return {**make_splits(), **changes}


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": [{"prompt": "a"}]}, "needs the splits train, probe, select, eval; it has: train"),
        ([{"prompt": "a"}], "it has: list"),
        (
            broken_splits(eval=[]),
            r"no row in eval \(train 2, probe 2, select 2, eval 0\): give more rows.*'split' column",
        ),
        (broken_splits(eval=[{"prompt": "train 0", "answer": ""}]), "'train 0' is in 'train' and in 'eval'.*disjoint"),
        (broken_splits(probe=["text"]), "row 0 of 'probe': 'text' is no dictionary"),
        (broken_splits(probe=[{"answer": "1"}]), "row 0 of 'probe'.*with a 'prompt'"),
        (broken_splits(probe=[{"prompt": 3, "answer": ""}]), "'prompt' is a int"),
        (broken_splits(probe=[{"prompt": " ", "answer": ""}]), "'prompt' is empty"),
        (broken_splits(probe=[{"prompt": [], "answer": ""}]), "empty list"),
        (broken_splits(probe=[{"prompt": ["hi"], "answer": ""}]), "no message such as"),
        (broken_splits(probe=[{"prompt": [{"role": "user"}], "answer": ""}]), "no message such as"),
        (broken_splits(probe=[{"prompt": MESSAGES, "answer": ""}]), "mixed"),
        (broken_splits(probe=[{"prompt": "a"}]), "in the columns answer"),
        (make_splits(completions="x"), "completions itself: rename"),
    ],
)
def test_splits_that_cannot_be_used(splits: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_task(splits=splits)


@pytest.mark.parametrize(
    "fields", [{"max_new_tokens": 0}, {"max_new_tokens": None}, {"num_eval": -1}, {"num_eval": 1.5}]
)
def test_limits_that_cannot_be_used(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="whole number above 0"):
        make_task(**fields)
