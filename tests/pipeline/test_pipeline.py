"""The whole flow on the packaged model, made short: its files, its scores, and how an interrupted run resumes."""

import gc
import importlib.util
import json
import re
import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pick_helpers import SHORT, decisions, short_pick
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import autolayer
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.progress import Progress, Stage
from autolayer.core.run_folder import COMPLETIONS, RunFolder
from autolayer.models.loading import load_model
from autolayer.models.merge import merge
from autolayer.models.names import model_path
from autolayer.pipeline import search_stage, train_stage, train_to_step
from autolayer.pipeline.setup import setup
from autolayer.reporting.results import PickResult
from autolayer.tasks import load_task
from autolayer.tasks.math import arith
from autolayer.training.workbench import Workbench


class Notes(Progress):
    seen: list[str] = []

    def show(self, stage: Stage) -> None:
        self.seen.append(f"{stage.name}: {stage.note}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PickResult, Path]:
    out = tmp_path_factory.mktemp("run") / "a"
    return short_pick(out, progress=Notes()), out


def completions(out: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(out / COMPLETIONS).to_pylist()
    return sorted(rows, key=lambda row: (row["arm"], row["step"]))  # in the order of sampling within a step


def test_the_search_tells_its_leader_and_what_is_spent(run: tuple[PickResult, Path]) -> None:
    told = [re.fullmatch(r"search: leader layer \d \(\d+%\), budget (\d+)% spent", note) for note in Notes.seen]
    spent = [int(match[1]) for match in told if match]
    assert len(spent) > 2 and spent == sorted(spent) and 0 < spent[0] < spent[-1] <= 100
    assert any(re.fullmatch(r"train: layer \d, training reward 0\.\d{3}", note) for note in Notes.seen)


def test_the_completions_of_every_arm_and_step_are_there(run: tuple[PickResult, Path]) -> None:
    rows, arms = completions(run[1]), [path.name for path in (run[1] / "arms").iterdir()]
    assert {row["arm"] for row in rows} == set(arms) and max(row["step"] for row in rows) == SHORT["steps"]
    assert len(rows) == 64 * len({(row["arm"], row["step"]) for row in rows})


def test_with_a_storage_a_run_that_hours_ended_is_over_and_goes_on(tmp_path: Path) -> None:
    options = {"storage": f"sqlite:///{tmp_path}/race.db", "steps": 16}
    ended = short_pick(tmp_path / "run", **options, hours=1e-6)
    assert ended.status == "incomplete" and any("--hours ended the training" in note for note in ended.notes)
    assert short_pick(tmp_path / "run", **options).status == "ok"


def test_a_run_leaves_what_it_promises(run: tuple[PickResult, Path]):
    result, out = run
    values = json.loads((out / "result.json").read_text())
    assert PickResult.from_dict(values) == result
    assert values == result.to_dict()
    assert {
        "config.json",
        "calibration.json",
        "probe.json",
        "study.db",
        "arms",
        "layer.safetensors",
        "report.html",
    } <= {path.name for path in out.iterdir()}
    assert result.status == "ok" and result.trained_layers == result.best_layers
    assert result.trained_score is not None and result.base_score is not None and result.gain is not None
    assert result.gain.value == pytest.approx(result.trained_score - result.base_score)
    assert set(result.baselines or ()) == {"random", "first", "middle", "last", "position"}
    assert set(result.cost) == {"calibrate", "probe", "search", "train"}


@pytest.mark.slow
def test_same_command_and_seed_in_a_new_folder_decides_the_same(run: tuple[PickResult, Path], tmp_path: Path):
    assert decisions(short_pick(tmp_path / "b")) == decisions(run[0])


def test_another_seed_is_another_run(run: tuple[PickResult, Path], tmp_path: Path):
    assert decisions(short_pick(tmp_path / "b", seed=1, until="probe"))["probes"] != decisions(run[0])["probes"]


def test_a_finished_run_is_read_not_repeated(run: tuple[PickResult, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Workbench, "sample", lambda *_, **__: pytest.fail("sampled again"))
    assert short_pick(run[1]) == PickResult.from_dict(run[0].to_dict())


@pytest.mark.slow
def test_stage_by_stage_is_the_same_run(run: tuple[PickResult, Path], tmp_path: Path):
    for until, known in (("calibrate", "cost"), ("probe", "probes"), ("search", "verdict")):
        part = short_pick(tmp_path / "b", until=until)
        assert part.status == "incomplete" and part.to_dict()[known] is not None and part.gain is None
        assert RunFolder(tmp_path / "b").read("result.json") == part.to_dict()
    assert decisions(short_pick(tmp_path / "b")) == decisions(run[0])


@pytest.mark.slow
@pytest.mark.parametrize("calls", [5])
def test_interrupted_and_resumed_is_the_same_run(
    calls: int, run: tuple[PickResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupts the n-th piece of training by Ctrl-C, and runs the same command again."""
    original, count = train_to_step.train_arm, 0

    def interrupted(bench, arm, to_step, *, on_step=None, seconds):
        nonlocal count
        count += 1
        if count == calls:

            def stop(_: float) -> None:
                raise KeyboardInterrupt

            return original(bench, arm, to_step, on_step=stop)
        return original(bench, arm, to_step, on_step=on_step, seconds=seconds)

    monkeypatch.setattr(train_to_step, "train_arm", interrupted)
    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    track = {"track": "tensorboard"} if has_tensorboard else {}
    try:
        short_pick(tmp_path / "b", **track)
        pytest.fail(f"this run has fewer than {calls} pieces of training")
    except KeyboardInterrupt:
        pass
    assert not (tmp_path / "b" / "result.json").exists()
    assert decisions(short_pick(tmp_path / "b", **track)) == decisions(run[0])
    assert completions(tmp_path / "b") == completions(run[1])
    if has_tensorboard:
        reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        for folder in (tmp_path / "b" / "arms").iterdir():
            events = reader.EventAccumulator(str(tmp_path / "b" / "tensorboard" / folder.name)).Reload()
            rewards = json.loads(max(folder.rglob("history.json"), key=lambda path: path.stat().st_size).read_text())
            assert [point.step for point in events.Scalars("reward")] == [*range(1, len(rewards["rewards"]) + 1)]


@pytest.mark.slow
def test_finding_costs_at_most_the_budget(run: tuple[PickResult, Path], tmp_path: Path):
    sizes = {"all probes": (40, 8), "the smallest": (100, 2), "no gradients": (40, 4)}
    found = {
        name: short_pick(tmp_path / name, steps=steps, prompts_per_step=prompts, budget=0.25, until="search")
        for name, (steps, prompts) in sizes.items()
    }
    for result, budget in ((run[0], 1.0), *((small, 0.25) for small in found.values())):
        assert result.cost_share_of_full_run is not None and 0 < result.cost_share_of_full_run <= budget, result.cost
    assert [name for name, small in found.items() if "no gradients" in "".join(small.notes)] == ["no gradients"]


def test_the_merged_checkpoint_scores_the_trained_score_and_keeps_the_rest(
    run: tuple[PickResult, Path], tmp_path: Path
):
    result, out = run
    merged = merge(None, out / "layer.safetensors", tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(merged) is not None
    base_folder = Path(model_path("tiny"))
    with (
        safe_open(merged / "model.safetensors", "pt") as new,
        safe_open(base_folder / "model.safetensors", "pt") as old,
    ):
        assert set(new.keys()) == set(old.keys())
        changed = {key for key in old.keys() if not torch.equal(new.get_tensor(key), old.get_tensor(key))}  # noqa: SIM118
    assert result.trained_layers is not None
    layer = result.trained_layers[0]
    assert changed and all(key.startswith(f"model.layers.{layer}.") for key in changed)
    loaded = load_model(str(merged))
    task = load_task(autolayer.core.config.Config(model="tiny", task="math:arith"), chat=False)
    config = autolayer.Config(model="random", prompts_per_step=8, group_size=8)
    bench = Workbench(loaded, task, config, RunFolder(tmp_path / "unused"))
    rewards = bench.evaluate("eval", 200, seed=0).rewards_I
    assert sum(rewards) / len(rewards) == result.trained_score


@pytest.mark.parametrize(("layers", "trained"), [("2", (2,)), ("1,-1", (1, 7)), ("full", tuple(range(8)))])
def test_train_trains_the_layers_it_is_given(layers: str, trained: tuple[int, ...], tmp_path: Path):
    options = {**SHORT, "steps": 3, "layers": layers, "learning_rate": 1e-3, "out": str(tmp_path / "t")}
    result = autolayer.train_layer(**options)
    assert result.trained_layers == trained and result.verdict is None and result.ranking is None
    loaded = autolayer.load_patch(tmp_path / "t" / "layer.safetensors")
    assert loaded.layers == ("full" if layers == "full" else trained) and loaded.steps == 3
    assert PickResult.from_dict(result.to_dict()) == result


def test_train_without_a_rate_takes_the_one_that_probes_give(tmp_path: Path):
    options = {**SHORT, "steps": 3, "layers": "2-3", "out": str(tmp_path / "t")}
    result = autolayer.train_layer(**options)
    assert result.learning_rate is not None and 1e-4 < result.learning_rate < 1e-2


def test_a_deadline_ends_the_training_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autolayer.pipeline.train_to_step.CHECKPOINT_STEPS", 5)
    result = short_pick(tmp_path / "b", steps=3000, hours=0.002, layers="2-3", budget=0.02)
    assert any("--hours ended the training" in note for note in result.notes)
    assert result.gain is not None


@pytest.mark.slow
def test_a_race_that_hours_ended_goes_on_after_a_part_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 40, "prompts_per_step": 4, "num_eval": 16, "max_new_tokens": 4, "seed": 1}
    rungs, train, race = [], train_stage.train_to_step, search_stage._run_rung

    def run_rung(*arguments: Any) -> Any:
        rungs.append(race(*arguments))
        return rungs[-1]

    monkeypatch.setattr(search_stage, "_run_rung", run_rung)
    whole = short_pick(tmp_path / "whole", **options)
    before_finals = len(rungs) - 2
    rungs.clear()
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: 1e12 if len(rungs) >= before_finals else 0.0)
        patch.setattr("autolayer.search.worker.time", clock)
        patch.setattr("autolayer.pipeline.train_to_step.CHECKPOINT_STEPS", 3)
        patch.setattr(train_stage, "train_to_step", lambda *args, **kwargs: islice(train(*args, **kwargs), 8))
        part = short_pick(tmp_path / "run", **options, hours=1000.0)
    assert part.status == "incomplete" and "time is up" in (part.stop_reason or "")
    assert part.best_layers == whole.best_layers, "the race asks for another rung of the arm that was trained"
    assert decisions(short_pick(tmp_path / "run", **options)) == decisions(whole)


def test_what_stays_for_the_run_is_searched_for_garbage_once(tmp_path: Path):
    """A trainer collects garbage when it starts, which on a small model takes longer than its first steps."""
    gc.unfreeze()
    with setup(autolayer.Config(**SHORT, out=str(tmp_path / "b"))):
        assert gc.get_freeze_count() > len(gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_config_and_keywords_do_not_mix():
    with pytest.raises(ConfigError, match="got a config and also seed"):
        autolayer.pick(autolayer.core.config.Config(model="tiny"), seed=1)


def test_stages_are_resumed_from_files_alone(run: tuple[PickResult, Path], tmp_path: Path):
    """Deletes the result and the trained layers: everything before is read, not run again."""
    shutil.copytree(run[1], tmp_path / "copy")
    for name in ("result.json", "layer.safetensors"):
        (tmp_path / "copy" / name).unlink()
    assert decisions(short_pick(tmp_path / "copy")) == decisions(run[0])


def test_two_processes_do_not_share_a_run_folder(tmp_path: Path):
    with RunFolder(tmp_path / "b").locked(), pytest.raises(RunFolderError, match="another process is working"):
        short_pick(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def own_data(folder: Path, rows: int, reward: str) -> dict:
    """Returns the options of a run on the user's own data and reward."""
    splits = ["train"] * (rows - 6) + ["probe", "select", "eval"] * 2
    problems = arith.arith_problems("train", rows)
    lines = [json.dumps({**problem, "split": split}) for problem, split in zip(problems, splits, strict=True)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    (folder / "reward.py").write_text(f"def score(completions, answer, **_):\n    return [{reward}]\n")
    data = {"data": str(folder / "data.jsonl"), "reward": f"{folder / 'reward.py'}:score", "max_new_tokens": 8}
    return {**data, "task": "math", "num_eval": None, "steps": 4, "prompts_per_step": 4, "budget": 4.0}


@pytest.mark.parametrize(
    "reward",
    [
        "100.0 * (c == a) - 200.0 for c, a in zip(completions, answer)",
        "1e9 + len(set(c) & set(a)) / 2 for c, a in zip(completions, answer)",
        "1e15 * (c == a) for c, a in zip(completions, answer)",
        "1e12 * (c == '77') + (c == a) for c, a in zip(completions, answer)",
    ],
    ids=["negative", "a large constant", "the largest", "one of a thousand is huge"],
)
def test_twenty_rows_and_rewards_of_any_scale_are_enough(reward: str, tmp_path: Path):
    result = short_pick(tmp_path / "b", **own_data(tmp_path, 20, reward))
    assert result.gain is not None and PickResult.from_dict(result.to_dict()) == result
