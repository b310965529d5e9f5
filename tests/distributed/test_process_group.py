"""Several processes that run one program find what one finds, and fail together."""

import json
from pathlib import Path

import pytest
from launch_helpers import SHORT, close, launch, same_movement, torchrun
from safetensors.torch import load_file

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.distributed.process_group import ProcessGroup, check_launcher
from autolayer.pipeline.checks import check_divisible
from autolayer.rollouts.rollouts import Rollouts

TOGETHER = """
import os, sys, torch
from autolayer.core.errors import ProcessGroupError, RewardError, TrainingError
from autolayer.distributed.process_group import attempt, join_process_group

group = join_process_group(on_cpu=True)
rank, number = group.rank, torch.tensor([float(group.rank)])

def raised(work):
    found = attempt(work)
    assert isinstance(found, Exception), found
    return f"{type(found).__name__}: {found}"

def fail(error, on):
    if rank == on:
        raise error
    group.average([number])  # a later exchange than the one that carries the exception

assert group.gather(rank) == [0, 1] and group.broadcast(rank) == 0
assert group.on_rank_0(lambda: group.on_rank_0(lambda: rank)) == 0, "may be nested"
group.average([number])
assert number.item() == 0.5

def together(error, on):
    with group.failing_together():
        fail(error, on)

assert raised(lambda: group.on_rank_0(lambda: fail(RewardError("bad"), 0))) == "RewardError: bad"
assert raised(lambda: together(RewardError("bad"), 1)) == "RewardError: bad"
assert raised(lambda: together(torch.OutOfMemoryError("full"), 0)) == "OutOfMemoryError: full"
other = "ProcessGroupError: process 1 of 2 failed (KeyError: 'lost')."
assert raised(lambda: together(KeyError("lost"), 1)) == (other if rank == 0 else "KeyError: 'lost'")

calls = []

def work(step):
    calls.append(step)
    if step == 1:
        raise TrainingError("diverged")
    if step == 2:
        fail(RewardError("bad"), 1)
    return group.gather(rank)

def program(call):
    assert rank == 0, "runs on rank 0 alone"
    found = [call(0), raised(lambda: call(1)), raised(lambda: call(2)), group.on_rank_0(lambda: "alone"), call(3)]
    return found

found = group.call_from_rank_0(program, work)
assert found == [[0, 1], "TrainingError: diverged", "RewardError: bad", "alone", [0, 1]] and calls == [0, 1, 2, 3]
assert raised(lambda: group.call_from_rank_0(lambda call: call(2), work)) == "RewardError: bad"
assert raised(lambda: group.call_from_rank_0(lambda call: 1 / 0, work)).endswith("division by zero).") or rank == 0
os.write(1, f"rank {rank} is done\\n".encode())  # in one piece: both ranks write to one pipe
"""


@pytest.mark.slow
def test_ranks_exchange_values_and_exceptions(tmp_path: Path) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    done = launch(2, cwd=tmp_path, program="together.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["rank 0 is done", "rank 1 is done"]


def bills(run: Path) -> dict[str, list[float]]:
    """The layer-tokens of every stage, and of every arm up to its checkpoints."""
    stages = {name: [json.loads((run / name).read_text())["cost"]] for name in ("calibration.json", "probe.json")}
    arms = {
        path.parent.name: json.loads(path.read_text())["costs"].values() for path in run.glob("arms/*/history.json")
    }
    return {name: [cost["layer_tokens"] for cost in costs] for name, costs in {**stages, **arms}.items()}


@pytest.mark.slow
def test_processes_together_pick_what_one_picks(tmp_path: Path) -> None:
    """Probes, a race, the final training and the evaluation, at the same bill. Groups lie across the processes."""
    for count, out in ((1, "one"), (3, "many")):
        command = ("pick", *SHORT, "--prompts-per-step", "4", "--group-size", "6", "--budget", "4", "--json")
        done = launch(count, *command, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["status"] == "ok", "the result is printed once"
    one, many = (json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "many"))
    for values in (one, many):
        del values["cost_share_of_full_run"]  # the price of a generated token is measured
        for cost in values["cost"].values():
            del cost["seconds"], cost["layer_tokens"], cost["seconds_share"]
    assert any(row["measured"] is not None for row in one["ranking"]), "there was a race"
    assert one["base_score"] != one["trained_score"]
    close(many, one)
    close(bills(tmp_path / "many"), bills(tmp_path / "one"))
    same_movement(*(load_file(tmp_path / out / "layer.safetensors") for out in ("many", "one")))


@pytest.mark.slow
def test_a_launcher_with_one_process_is_like_no_launcher(tmp_path: Path) -> None:
    command = ("train", *SHORT, "--steps", "2", "--layers", "2", "--learning-rate", "1e-3", "--out")
    plain = launch(1, *command, "plain", cwd=tmp_path)
    launched = torchrun(1, *command, "launched", cwd=tmp_path)
    assert plain.returncode == launched.returncode == 0, plain.stderr[-2000:] + launched.stderr[-2000:]
    one, other = (load_file(tmp_path / out / "layer.safetensors") for out in ("plain", "launched"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("wrapper", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_an_accelerate_configuration_that_wraps_the_model_is_refused(
    wrapper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{wrapper}", "false")
    check_launcher("auto")
    monkeypatch.setenv(f"ACCELERATE_USE_{wrapper}", "true")
    with pytest.raises(ConfigError, match="accelerate config.*torchrun"):
        check_launcher("auto")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [("--layers", "full"), ("--layers", "2", "--adapter", "lora")], ids=" ".join)
def test_all_parameters_and_adapters_and_a_reference_train_the_same_together(
    kind: tuple[str, ...], tmp_path: Path
) -> None:
    for count in (1, 2):
        command = ("train", *SHORT, *kind, "--learning-rate", "1e-3", "--beta", "0.02", "--out", str(count))
        done = launch(count, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    found = [
        next((tmp_path / str(count)).rglob("*adapter_model.safetensors"), tmp_path / str(count) / "layer.safetensors")
        for count in (1, 2)
    ]
    wanted, tensors = map(load_file, found)
    same_movement(tensors, wanted)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import os\n\ndef score(completions, **_):\n    assert os.environ['RANK'] == '0', 'broken here'\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    rows = "".join(json.dumps({"prompt": f"{a}+{b}="}) + "\n" for a in range(20) for b in range(20))
    (tmp_path / "sums.jsonl").write_text(rows)
    command = ("pick", "--model", "tiny", "--data", "sums.jsonl", "--reward", "reward.py:score", "--steps", "4",
               "--max-new-tokens", "4", "--out", "run")  # fmt: skip
    done = torchrun(2, *command, cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.count("autolayer: error: ") == 1, done.stderr[-3000:]
    assert "AssertionError: broken here" in done.stderr and not (tmp_path / "run").exists()


BREAKING = """
import os, sys, torch
from autolayer.cli import main
from autolayer.training.grpo_trainer import LayerGRPOTrainer

step, kind, who = LayerGRPOTrainer.training_step, sys.argv.pop(1), sys.argv.pop(1)

def breaking(self, *arguments, **options):
    if os.environ["RANK"] == who and self.arm.step + self.state.global_step == 1:
        raise {"memory": torch.OutOfMemoryError("CUDA out of memory. Tried"), "key": KeyError("lost")}[kind]
    return step(self, *arguments, **options)

LayerGRPOTrainer.training_step = breaking
main.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "who"), [("memory", "1"), ("key", "0")])
def test_a_process_that_fails_in_the_middle_of_a_step_ends_the_others(kind: str, who: str, tmp_path: Path) -> None:
    """One sentence, and soon: nobody waits for what never comes. The same command then resumes."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    command = ("train", *SHORT, "--layers", "2", "--learning-rate", "1e-3", "--out", "run")
    done = launch(2, kind, who, *command, cwd=tmp_path, program="breaking.py")
    assert done.returncode != 0 and done.stderr.count("which ends all of them") == 1, done.stderr[-2000:]
    assert f"autolayer: error: process {who} of 2 failed" in done.stderr
    assert ("give --activation-checkpointing" in done.stderr) == (kind == "memory")
    again = launch(2, *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]


def test_what_cannot_be_divided_is_refused() -> None:
    check_divisible(Config(model="tiny", prompts_per_step=3, group_size=8), 6)
    with pytest.raises(ConfigError, match="3 prompts x 8 completions cannot be divided among 5 processes"):
        check_divisible(Config(model="tiny", prompts_per_step=3, group_size=8), 5)


def test_shares_are_consecutive_and_complete() -> None:
    for world_size in (1, 2, 3, 7):
        ranks = [ProcessGroup.__new__(ProcessGroup) for _ in range(world_size)]
        for rank, each in enumerate(ranks):
            each.rank, each.world_size = rank, world_size
        for count in (0, 1, 5, 20):
            parts = [list(each.share(range(count))) for each in ranks]
            assert sum(parts, []) == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_metrics_of_parts_are_weighed_by_their_size() -> None:
    def part(rewards: list[float], **metrics: float) -> Rollouts:
        count = len(rewards)
        return Rollouts.of_one_turn(
            [[1]] * count, [[2]] * count, [""] * count, rewards, [True] * count, 1, metrics=metrics
        )

    whole = Rollouts.joined([part([1.0, 0.0, 0.5], late=0.5), part([1.0], late=1.0, bad=1.0)], 2)
    assert whole.rewards == [1.0, 0.0, 0.5, 1.0] and whole.group_size == 2
    assert whole.metrics == pytest.approx({"late": 0.625, "bad": 1.0})  # over the parts that logged it
