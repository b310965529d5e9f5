"""The values that an environment may return: a failure must never become a reward."""

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from autolayer.core.errors import DataError, EpisodeError
from autolayer.tasks import SPLITS, Step, Task, environment, split_rows
from autolayer.tasks.environment import act, begin, end, finish, state_of

ROW = {"prompt": "go"}


class Fixed:
    """Returns what it was given."""

    def __init__(self, step: Any = None, first: Any = "", last: Any = 0.0) -> None:
        self.given, self.first, self.last = step, first, last

    def reset(self, row):
        return self.raise_or_return(self.first)

    def step(self, action):
        return self.raise_or_return(self.given)

    def finish(self):
        return self.raise_or_return(self.last)

    def raise_or_return(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


@pytest.mark.parametrize("reward", [1, True, 1.0, np.float32(1), np.int64(1), torch.tensor(1.0), torch.tensor([1])])
def test_every_kind_of_number_is_a_reward(reward: Any) -> None:
    step = act(Fixed(("seen", reward, np.bool_(True))), "go")
    assert step == Step("seen", 1.0, True) and type(step.reward) is float and type(step.done) is bool
    assert finish(Fixed(last=reward)) == 1.0


def test_a_state_has_the_environments_name_or_the_observations() -> None:
    named = Fixed(Step("seen", 0.0, False))
    assert state_of(named, "seen") == "seen"
    named.state = "here"  # pyright: ignore
    assert state_of(named, "seen") == "here"


@pytest.mark.parametrize(
    "bad",
    [None, "1", float("nan"), float("inf"), 1j, [1.0], 10**400, np.array([1.0, 2.0]), torch.tensor(float("nan"))],
    ids=repr,
)
def test_what_is_no_finite_number_is_refused(bad: Any) -> None:
    with pytest.raises(
        EpisodeError, match=r"Fixed.step' \(.*test_environment.py:\d+\) returned .* as the reward, 0.0 for"
    ):
        act(Fixed(("seen", bad, False)), "go")
    with pytest.raises(EpisodeError, match=r"Fixed.finish' \(.*returned .*: return a finite number"):
        finish(Fixed(last=bad))


@pytest.mark.parametrize("bad", [None, "seen", ("seen", 1.0), ("seen", 1.0, False, "here"), ["seen", 1.0, False]])
def test_what_is_no_step_is_refused(bad: Any) -> None:
    with pytest.raises(EpisodeError, match="Fixed.step' .*return an autolayer.tasks.Step"):
        act(Fixed(bad), "go")


@pytest.mark.parametrize("bad", [(None, 0.0, False), (3, 0.0, False)])
def test_observations_are_texts(bad: Any) -> None:
    with pytest.raises(EpisodeError, match="return a text"):
        act(Fixed(bad), "go")


def test_the_first_observation_is_a_text() -> None:
    assert begin(Fixed(first="seen"), ROW) == "seen"
    with pytest.raises(EpisodeError, match="Fixed.reset' .*returned None.*'' if the prompt says all"):
        begin(Fixed(first=None), ROW)


def test_an_environment_that_raises_is_named_with_its_line_and_what_it_was_given() -> None:
    broken = Fixed(KeyError("door"), OSError("no file"), ValueError("no reward"))
    with pytest.raises(
        EpisodeError, match=r"test_environment.py:\d+.*OSError in reset: no file.*given {'prompt': 'go'}"
    ):
        begin(broken, ROW)
    with pytest.raises(
        EpisodeError, match="KeyError in step: 'door'.*given 'fly'; an action that makes no sense is no error"
    ) as caught:
        act(broken, "fly")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(EpisodeError, match="ValueError in finish: no reward"):
        finish(broken)


def test_an_environment_that_cannot_be_made_is_named() -> None:
    def without_a_game():
        raise OSError("no game")

    def leaves():
        raise SystemExit(3)

    with pytest.raises(EpisodeError, match=r"test_environment.py:\d+\) raised OSError when it was made: no game"):
        environment.make(without_a_game)
    with pytest.raises(EpisodeError, match="raised SystemExit when it was made: 3"):
        environment.make(leaves)
    with pytest.raises(EpisodeError, match="has no reset and no step: give both"):
        environment.make(lambda: 3)  # pyright: ignore
    assert isinstance(environment.make(Fixed), Fixed)


def test_code_that_leaves_the_process_is_an_error() -> None:
    class Leaves(Fixed):
        def step(self, action):
            raise SystemExit(5)

    with pytest.raises(EpisodeError, match="raised SystemExit in step: 5"):
        act(Leaves(), "go")


def test_finish_is_optional() -> None:
    class Plain:
        def reset(self, row):
            return ""

        def step(self, action):
            return Step("", 0.0, True)

    assert finish(Plain()) == 0.0


class Sleeping(Fixed):
    def step(self, action):
        threading.Event().wait(60)
        return Step("", 0.0, True)


def test_a_step_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LIMIT", 0.2)
    with pytest.raises(EpisodeError, match="raised TimeoutError in step: not back after 0.2 seconds.*given 'go'"):
        act(Sleeping(), "go")
    assert act(Fixed(("seen", 1.0, True)), "go").reward == 1.0, "and the next one is not held up"


def test_all_calls_come_from_one_thread() -> None:
    class Threads(Fixed):
        seen: ClassVar[set[int]] = set()

        def reset(self, row):
            self.seen.add(threading.get_ident())
            return ""

        def step(self, action):
            self.seen.add(threading.get_ident())
            return Step("", 0.0, True)

    for _ in range(3):
        begin(Threads(), ROW)
        act(Threads(), "go")
    assert len(Threads.seen) == 1


def test_close_is_optional_and_named_when_it_raises() -> None:
    class Held(Fixed):
        closed = 0

        def close(self):
            self.closed += 1
            if self.closed > 1:
                raise OSError("closed already")

    held = Held()
    end(Fixed())
    end(held)
    assert held.closed == 1
    with pytest.raises(EpisodeError, match=r"test_environment.py:\d+\) raised OSError in close: closed already"):
        end(held)


def make_task(splits: Any, **fields: Any) -> Task:
    return Task(**{"name": "toy", "splits": splits, "max_new_tokens": 4, "environment": Fixed, **fields})


def test_episodes_may_share_a_prompt_but_not_a_row() -> None:
    splits = {split: [{"prompt": "play", "game": f"{split}.z8"}] for split in SPLITS}
    assert make_task(splits).splits == splits
    splits["eval"] = splits["train"]
    with pytest.raises(DataError, match="the row .*train.z8.* is in 'train' and in 'eval'"):
        make_task(splits)


def test_rows_are_split_as_a_whole() -> None:
    rows = [{"prompt": "play", "game": np.int64(i)} for i in range(400)]
    splits = split_rows(rows, by_row=True)
    assert all(len(splits[split]) > 20 for split in SPLITS) and splits == split_rows(rows[::-1], by_row=True)
    with pytest.raises(DataError, match="a row holds .*object.*only texts"):
        split_rows([{"prompt": "play", "game": object()}], by_row=True)


def test_a_task_has_one_source_of_rewards() -> None:
    splits = {split: [{"prompt": split}] for split in SPLITS}
    with pytest.raises(DataError, match="a reward and an environment"):
        make_task(splits, reward=lambda **kwargs: [0.0])
    with pytest.raises(DataError, match="max_turns is 0"):
        make_task(splits, max_turns=0)


def test_a_stop_is_a_text_that_ends_a_completion() -> None:
    splits = {split: [{"prompt": split}] for split in SPLITS}
    with pytest.raises(DataError, match="stop is 'Q:'; .* leave it out, as with an environment"):
        make_task(splits, stop="Q:")
    one_turn = {"environment": None, "reward": lambda **kwargs: [0.0]}
    assert make_task(splits, stop="Q:", **one_turn).stop == "Q:"
    for stop in ("", 3):
        with pytest.raises(DataError, match="give a text that ends a completion"):
            make_task(splits, stop=stop, **one_turn)
