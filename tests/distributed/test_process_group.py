"""Several processes at one run find what one finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch_helpers import SHORT, close, launch, same_movement
from safetensors.torch import load_file

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.distributed.process_group import Ranks
from autolayer.pipeline.checks import check_divisible
from autolayer.rollouts.types import Rollouts


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 3])
def test_processes_together_pick_what_one_picks(num: int, tmp_path: Path) -> None:
    """Probes, a race, the final training and the evaluation; a step's groups lie across processes where there are 3."""
    for count, out in ((1, "one"), (num, "many")):
        done = launch(count, "pick", *SHORT, "--budget", "4", "--out", out, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["status"] == "ok", "the result is printed once"
    one, many = (json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "many"))
    for values in (one, many):
        del values["cost_share_of_full_run"]  # the price of a generated token is measured
        for cost in values["cost"].values():
            del cost["seconds"], cost["layer_tokens"]
    assert any(row["measured"] is not None for row in one["ranking"]), "there was a race"
    assert one["base_score"] != one["trained_score"]
    close(many, one)
    same_movement(*(load_file(tmp_path / out / "layer.safetensors") for out in ("many", "one")))


@pytest.mark.slow
def test_all_parameters_and_adapters_and_a_reference_train_the_same_together(tmp_path: Path) -> None:
    kinds = {"full": ("--layers", "full"), "lora": ("--layers", "2", "--adapter", "lora")}
    for name, kind in kinds.items():
        for count in (1, 2):
            command = ("train", *SHORT, *kind, "--learning-rate", "1e-3", "--beta", "0.02", "--out", f"{name}-{count}")
            done = launch(count, *command, cwd=tmp_path)
            assert done.returncode == 0, done.stderr[-3000:]
        files = [next((tmp_path / f"{name}-{count}").rglob("*adapter_model.safetensors"), None)
                 or tmp_path / f"{name}-{count}" / "layer.safetensors" for count in (1, 2)]  # fmt: skip
        wanted, tensors = map(load_file, files)
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
    done = launch(2, *command, cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.count("autolayer: error: ") == 1
    assert "AssertionError: broken here" in done.stderr and not (tmp_path / "run").exists()


BREAKING = """
import os, sys, torch
from autolayer import cli, segment
step, kind, who = segment.LayerGRPOTrainer.training_step, sys.argv.pop(1), sys.argv.pop(1)

def breaking(self, *arguments, **options):
    if os.environ["RANK"] == who and self.arm.step + self.state.global_step == 1:
        raise {"memory": torch.OutOfMemoryError("CUDA out of memory. Tried"), "key": KeyError("lost")}[kind]
    return step(self, *arguments, **options)

segment.LayerGRPOTrainer.training_step = breaking
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "who"), [("memory", "1"), ("key", "0")])
def test_a_process_that_stops_in_the_middle_of_a_step_takes_the_others_along(
    kind: str, who: str, tmp_path: Path
) -> None:
    """One sentence, and soon: nobody waits for what never comes. The same command then goes on."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    command = ("train", *SHORT, "--layers", "2", "--learning-rate", "1e-3", "--out", "run")
    done = launch(2, *command, cwd=tmp_path, program=("breaking.py", kind, who))
    assert done.returncode != 0 and done.stderr.count("stopped in the middle of a step") == 1, done.stderr[-2000:]
    assert f"autolayer: error: process {who} of 2 stopped in the middle of a step" in done.stderr
    assert ("give --activation-checkpointing" in done.stderr) == (kind == "memory")
    again = launch(2, *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]


def test_what_cannot_be_divided_is_refused() -> None:
    check_divisible(Config(model="tiny", prompts_per_step=3, group_size=8), 6)
    with pytest.raises(ConfigError, match="3 prompts x 8 completions cannot be divided among 5 processes"):
        check_divisible(Config(model="tiny", prompts_per_step=3, group_size=8), 5)


def test_shares_are_consecutive_and_complete() -> None:
    for num in (1, 2, 3, 7):
        ranks = [Ranks.__new__(Ranks) for _ in range(num)]
        for index, each in enumerate(ranks):
            each.index, each.num = index, num
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
    assert whole.metrics == pytest.approx({"late": 0.625, "bad": 0.25})
