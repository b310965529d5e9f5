"""completions.parquet and the points that a tracker gets: none twice, whatever interrupts a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_models import build_model
from workbench_helpers import make_bench, make_task

from autolayer.core.arms import Arm
from autolayer.core.errors import RewardError
from autolayer.core.run_folder import COMPLETIONS
from autolayer.reporting.trackers import TRACKERS, Tracker
from autolayer.training import completions
from autolayer.training.completions import add_completions
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

ARM = Arm(layers=(1,), learning_rate=1e-3, seed=0)
USUAL = {"reward", "completions/mean_length", "completions/clipped_ratio", "entropy", "kl", "update_size"}


def by_length(completion_ids: list[list[int]], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
    log_extra("words", [f"{len(ids)} tokens" for ids in completion_ids])
    log_extra("tokens", [len(ids) for ids in completion_ids])
    log_extra("reward", ["taken"] * len(completion_ids))
    log_metric("longest", max(map(len, completion_ids)))
    return [sum(ids) / len(ids) / 100 for ids in completion_ids]


class Recorder(Tracker):
    """Keeps in `points` what it gets, by run."""

    points: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    tables: list[tuple[int, int]] = []
    fails = False
    fails_at = 0

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run: str | None) -> None:
        if self.fails:
            raise ConnectionError("no network")
        self.run = run or f"run {len(self.points)}"
        self.points.setdefault(self.run, [])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("no network")
        self.points[self.run].append((step, metrics))

    def log_table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tables.append((step, len(rows)))

    def close(self) -> None:
        pass


class Broken(Recorder):
    """A tracker that cannot be reached."""

    fails = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(TRACKERS, "wandb", Recorder)
    monkeypatch.setitem(TRACKERS, "mlflow", Broken)
    for name, value in {"points": {}, "tables": [], "fails": False, "fails_at": 0}.items():
        monkeypatch.setattr(Recorder, name, value)
    return Recorder


def tracked_bench(folder: Path, **options: Any) -> Workbench:
    bench = make_bench(build_model("qwen3"), folder, make_task(by_length), **options)
    bench.log.config = bench.config.replace(track="wandb")
    return bench


def test_a_resumed_run_doubles_neither_points_nor_completions(tmp_path: Path, recorder: type[Recorder]) -> None:
    bench = tracked_bench(tmp_path, beta=0.1)
    first = train_arm(bench, ARM, 1).arm
    second = train_arm(bench, first, 2).arm
    whole = pq.read_table(tmp_path / COMPLETIONS)
    bench = tracked_bench(tmp_path, beta=0.1)  # another process, which repeats the second step
    train_arm(bench, first, 2)
    assert pq.read_table(tmp_path / COMPLETIONS) == whole
    train_arm(bench, second, 3)

    table = pq.read_table(tmp_path / COMPLETIONS)
    assert table.column_names == [
        "arm", "step", "prompt", "completion", "reward", "rewards/by_length", "truncated", "words", "tokens",
    ]  # fmt: skip
    assert sorted(table["step"].to_pylist()) == [1] * 16 + [2] * 16 + [3] * 16
    last = table.to_pylist()[-1]
    assert last["arm"] == ARM.key and "=" in last["prompt"] and last["words"] == f"{last['tokens']:.0f} tokens"
    assert last["reward"] == last["rewards/by_length"] and isinstance(last["truncated"], bool)

    assert list(recorder.points) == ["run 0"] and recorder.tables == [(1, 16), (2, 16), (3, 16)]
    assert [step for step, _ in recorder.points["run 0"]] == [1, 2, 3]
    for step, metrics in recorder.points["run 0"]:
        assert set(metrics) == {*USUAL, "longest"} and metrics["update_size"] > 0
        rewards = [row["reward"] for row in table.to_pylist() if row["step"] == step]
        assert metrics["reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_what_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, recorder: type[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder.fails = True
    (tmp_path / COMPLETIONS).mkdir()
    bench = tracked_bench(tmp_path)
    with caplog.at_level(logging.WARNING):
        arm = train_arm(bench, train_arm(bench, ARM, 1).arm, 2).arm
    assert arm.step == 2 and len(caplog.messages) == 2
    assert "completions.parquet stops here" in caplog.messages[0] and "--track wandb stops here" in caplog.messages[1]
    recorder.fails = False  # the next process sends all that is missing
    train_arm(tracked_bench(tmp_path), arm, 3)
    assert [step for step, _ in recorder.points["run 0"]] == [1, 2, 3]


def test_one_of_several_trackers_may_fail(
    tmp_path: Path, recorder: type[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    bench = tracked_bench(tmp_path)
    bench.log.config = bench.config.replace(track=["mlflow", "wandb"])
    other = replace(ARM, layers=(2,))
    with caplog.at_level(logging.WARNING):
        for arm in (train_arm(bench, ARM, 1).arm, ARM, other):
            train_arm(bench, arm, arm.step + 1)
    assert [[step for step, _ in points] for points in recorder.points.values()] == [[1, 2], [1]]
    assert [message.split(" stops")[0] for message in caplog.messages] == ["--track mlflow"]


def test_a_tracker_that_fails_at_a_step_goes_on_from_it_and_an_arm_trained_again_has_no_step_twice(
    tmp_path: Path, recorder: type[Recorder]
) -> None:
    recorder.fails_at = 2
    arm = train_arm(tracked_bench(tmp_path), ARM, 3).arm
    assert [step for step, _ in recorder.points["run 0"]] == [1]
    recorder.fails_at = 0
    bench = tracked_bench(tmp_path)
    train_arm(bench, arm, 4)
    bench.checkpoints.delete(arm)
    train_arm(bench, ARM, 1)
    assert {run: [step for step, _ in points] for run, points in recorder.points.items()} == {"run 0": [1, 2, 3, 4]}


def test_steps_before_a_failing_reward_are_logged(tmp_path: Path, recorder: type[Recorder]) -> None:
    def reward(completion_ids: list[list[int]], trainer_state: Any, **_: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids] if trainer_state.global_step < 2 else []

    bench = make_bench(build_model("qwen3"), tmp_path, make_task(reward))
    bench.log.config = bench.config.replace(track="wandb")
    with pytest.raises(RewardError):
        train_arm(bench, ARM, 4)
    assert [step for step, _ in recorder.points["run 0"]] == [1, 2]
    assert set(pq.read_table(tmp_path / COMPLETIONS)["step"].to_pylist()) == {1, 2}


def test_the_table_is_bounded_and_takes_any_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(steps: Sequence[int], note: Any) -> list[dict[str, Any]]:
        return [{"arm": "a", "step": step, "completion": "x" * 1000, "note": note} for step in steps]

    monkeypatch.setattr(completions, "MAX_BYTES", 8000)
    for steps, note in (([1, 2, 3], None), ([4, 5, 6], 1.0), ([7], "text"), ([8, 9], 2.0)):
        add_completions(tmp_path, rows(steps, note), is_shared=True)
    table = pq.read_table(tmp_path / COMPLETIONS)
    assert table["step"].to_pylist() == [1, 2, 4, 6, 8, 9]
    assert table["note"].to_pylist() == [None, None, "1", "1", "2", "2"] and table.nbytes <= 8000

    add_completions(tmp_path, [{**rows([1], None)[0], "arm": str(arm)} for arm in range(9)], is_shared=False)
    table = pq.read_table(tmp_path / COMPLETIONS)
    assert 0 < table.nbytes <= 8000 and table["arm"].to_pylist()[-1] == "8"

    (tmp_path / COMPLETIONS).write_bytes(b"PAR1")  # damaged
    odd = [*rows([1], "half a \ud83d"), *rows([2], ["list"])]
    add_completions(tmp_path, odd, is_shared=False)
    assert pq.read_table(tmp_path / COMPLETIONS)["note"].to_pylist() == ["half a ?", "['list']"]
