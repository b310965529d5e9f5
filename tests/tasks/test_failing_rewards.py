"""A reward that fails now and then, or that hangs, costs little of a run."""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from launch_helpers import launch
from pick_helpers import decisions
from safetensors.torch import load_file
from workbench_helpers import make_task

import autolayer
from autolayer.core.errors import ConfigError, OverdueError, RewardError
from autolayer.tasks import deadline, rewards

REWARD = """
import os, time
from concurrent.futures import ThreadPoolExecutor
calls = 0
def right(completions, answer):
    return [float(c.strip() == a) for c, a in zip(completions, answer)]
def every_seventh_call_fails(completions, answer, **_):
    global calls
    calls += 1
    if calls % 7 == 0: raise ConnectionError("try again")
    return right(completions, answer)
def second_process_fails(completions, answer, **_):
    global calls
    calls += 1
    if calls % 7 == 0 and os.environ.get("RANK") == "1": raise ConnectionError("try again")
    return right(completions, answer)
def hangs(completions, answer, **_):
    global calls
    calls += 1
    if calls == 8:
        with ThreadPoolExecutor() as pool: pool.submit(time.sleep, 600).result()
    return right(completions, answer)
def sound(completions, answer, **_):
    return right(completions, answer)
"""


def scored(task: autolayer.Task) -> list[float]:
    return task.score([{"prompt": "1"}] * 2, ["a", "b"])


class Flaky:
    """Fails at its first calls: returns no rewards, then raises, then returns a coroutine that raises."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(self, prompts: list[str], **_: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("no route")
        if self.left == 1:
            return None
        return self.later(len(prompts))

    async def later(self, count: int) -> list[float]:
        await asyncio.sleep(0)
        if self.left >= 0:
            raise TimeoutError("busy")
        return [0.5] * count


def test_a_failed_reward_is_called_again_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(rewards.time, "sleep", pauses.append)
    with caplog.at_level(logging.WARNING):
        assert scored(autolayer.Task(**{**vars(make_task(Flaky(4))), "reward_retries": 4})) == [0.5, 0.5]
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert "busy" in caplog.text and "called again in 8 seconds (4 of 4)" in caplog.text
    with pytest.raises(RewardError, match="no route.*--reward-retries calls it again"):
        scored(autolayer.Task(**{**vars(make_task(Flaky(2))), "reward_retries": 1}))
    with pytest.raises(RewardError):
        scored(make_task(Flaky(1)))


def sleeps() -> None:
    time.sleep(60)


def computes() -> None:
    while True:
        pass


def waits_for_a_thread() -> None:
    threading.Event().wait()


async def awaits() -> None:
    await asyncio.sleep(60)


def catches_everything_once() -> None:
    try:
        time.sleep(60)
    except:  # noqa: E722
        time.sleep(60)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "GRACE", 0.3)
    monkeypatch.setattr(deadline, "AGAIN", 0.2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("hang", [sleeps, computes, waits_for_a_thread, awaits, catches_everything_once])
@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_a_reward_that_hangs_is_interrupted_after_the_deadline(hang: Callable[[], Any], ctrl_c: Any) -> None:
    before, started = signal.signal(signal.SIGINT, ctrl_c), time.monotonic()
    try:
        with deadline.rewards_end_by(started), pytest.raises(OverdueError, match="<lambda>.* deadline of --hours"):
            scored(autolayer.Task(**{**vars(make_task(lambda **_: hang())), "reward_retries": 3}))
        assert signal.getsignal(signal.SIGINT) is ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("quick")
def test_what_ends_in_time_or_is_no_slower_than_before_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_slowest", 0.0)

    def slow(prompts: list[str], **_: Any) -> list[float]:
        time.sleep(0.6)
        return [0.5] * len(prompts)

    with deadline.rewards_end_by(time.monotonic() + 1.2):
        assert scored(make_task(slow)) == [0.5, 0.5]
        time.sleep(0.7)
        assert scored(make_task(slow)) == [0.5, 0.5], "after the deadline, as for the evaluation"


@pytest.mark.usefixtures("quick")
def test_ctrl_c_stays_ctrl_c() -> None:
    main = threading.main_thread().ident or 0
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        timer.start()
        with deadline.rewards_end_by(time.monotonic() + 60), pytest.raises(KeyboardInterrupt):
            scored(make_task(lambda **_: sleeps()))
    finally:
        signal.signal(signal.SIGINT, before)


def options(folder: Path, reward: str, out: str) -> dict[str, Any]:
    (folder / "reward.py").write_text(REWARD)
    lines = [f'{{"prompt": "{a}+{b}=", "answer": "{a + b}"}}' for a in range(24) for b in range(40)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    files = {"data": str(folder / "data.jsonl"), "reward": f"{folder}/reward.py:{reward}", "out": str(folder / out)}
    sizes = {"steps": 12, "prompts_per_step": 4, "group_size": 4, "num_eval": 16, "max_new_tokens": 4}
    return {"model": "tiny", **files, **sizes, "layers": "1-3", "budget": 3.0}


def flags(given: dict[str, Any]) -> list[str]:
    return [text for name, value in given.items() for text in ("--" + name.replace("_", "-"), str(value))]


def found_by(**given: Any) -> dict[str, Any]:
    """Returns what a pick decides and measures, without the name of its reward."""
    found = decisions(autolayer.pick(**given))
    return {name: value for name, value in found.items() if name not in ("config", "signature")}


@pytest.mark.slow
def test_with_a_reward_that_fails_once_in_seven_calls_every_restart_gets_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found_by(**options(tmp_path, "sound", "sound"))
    failing = options(tmp_path, "every_seventh_call_fails", "failing")
    for _ in range(30):
        try:
            found = found_by(**failing)
            break
        except RewardError as error:
            assert "--reward-retries" in str(error)
    assert found == expected
    monkeypatch.setattr(rewards, "LONGEST_PAUSE", 0.0)
    assert found_by(**{**failing, "out": str(tmp_path / "again"), "reward_retries": 1}) == expected


@pytest.mark.slow
def test_a_run_whose_reward_hangs_ends_after_its_deadline_and_resumes(tmp_path: Path) -> None:
    given = options(tmp_path, "hangs", "run")
    start = (
        "import sys; import autolayer.tasks.deadline as deadline; from autolayer.cli.main import main\n"
        "deadline.GRACE, deadline.AGAIN = 1.0, 0.5; main(sys.argv[1:])"
    )
    (tmp_path / "start.py").write_text(start)
    started = time.monotonic()
    done = Command("pick", *flags(given), "--hours", "0.01", cwd=tmp_path, program="start.py").ended()
    assert done.returncode == 2 and time.monotonic() - started < 120
    assert "'hangs'" in done.stderr and "deadline of --hours" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "reward.py").write_text(REWARD.replace("calls == 8", "False"))
    assert autolayer.pick(**given, accept_changes=True).status == "ok"


@pytest.mark.slow
def test_processes_keep_the_steps_before_one_of_them_failed(tmp_path: Path) -> None:
    def train(reward: str, *more: str) -> tuple[int, str]:
        given = {**options(tmp_path, reward, reward), "layers": "2", "learning_rate": 1e-3}
        given = {name: value for name, value in given.items() if name != "budget"}
        done = launch(2, "train", *flags(given), *more, cwd=tmp_path)
        return done.returncode, done.stderr

    assert train("sound")[0] == 0
    code, said = train("second_process_fails")
    assert code != 0 and "ConnectionError: try again" in said and "--reward-retries" in said
    (saved,) = (tmp_path / "second_process_fails").rglob("step-*.safetensors")
    assert int(saved.stem[5:]) > 2
    assert train("second_process_fails", "--reward-retries", "2")[0] == 0
    found, expected = (load_file(tmp_path / name / "layer.safetensors") for name in ("second_process_fails", "sound"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_retries_are_for_reward_functions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'agent:house' has an environment instead"):
        autolayer.pick(model="tiny", task="agent:house", reward_retries=1, out=str(tmp_path / "run"))


def test_a_reward_is_not_retried_after_the_deadline() -> None:
    calls: list[int] = []

    def failing(**_: Any) -> list[float]:
        calls.append(1)
        raise ValueError("no judge")

    with deadline.rewards_end_by(time.monotonic() - 1), pytest.raises(RewardError, match="no judge"):
        rewards.retried(lambda: scored(make_task(failing)), 5)
    assert len(calls) == 1


class Unprintable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


class Number(float):
    """Can be neither shown nor converted."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __float__(self) -> float:
        raise RuntimeError


@pytest.mark.parametrize(
    ("raised", "words"),
    [(asyncio.CancelledError("x"), "raised CancelledError: x. The"), (GeneratorExit(), "raised GeneratorExit: . The"),
     (ValueError("a\n\nb"), "raised ValueError: a b. The"),
     (ValueError("x" * 10_000), r"raised ValueError: x{1000} \.\.\.\. The"),
     (Unprintable(), "raised Unprintable: an error whose text cannot be read")],
)  # fmt: skip
def test_whatever_a_reward_raises_is_told_in_one_line(raised: BaseException, words: str) -> None:
    def fails(**_: Any) -> list[float]:
        raise raised

    with pytest.raises(RewardError, match=words) as caught:
        scored(make_task(fails))
    assert "\n" not in str(caught.value)


def test_a_reward_that_cannot_be_printed_is_refused() -> None:
    with pytest.raises(RewardError, match="returned <.*Number object.*> for sample 0"):
        scored(make_task(lambda **_: [Number(1)] * 2))
