"""The command of the README, `autolayer pick --model Qwen/Qwen3-8B --task math`, from the first token to the merge.

Offline, in processes of their own: HF_HOME holds a small trained chat model under that name (`mission_model`) and word
problems in GSM8K's format.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import make_gsm8k_cache, make_model_cache
from mission_model import build_mission_model, problems
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from autolayer.models.patch import load_patch
from autolayer.reporting.results import PickResult
from autolayer.tasks.math.reward import INSTRUCTION

pytestmark = pytest.mark.slow

MISSION = ("pick", "--model", "Qwen/Qwen3-8B", "--task", "math")
SMALL = ("--prompts-per-step", "16", "--max-new-tokens", "20", "--num-eval", "192")
SHORT = (*SMALL, "--steps", "40", "--budget", "0.5")


class Home:
    """A home folder of Hugging Face's libraries, and a working folder to run commands in."""

    def __init__(self, folder: Path) -> None:
        rows = problems(1600)
        self.folder, self.base = folder, build_mission_model(folder / "model", rows[:1400])
        self.work = folder / "work"
        self.work.mkdir()
        make_gsm8k_cache(folder / "hf", rows, num_test=200)
        make_model_cache(folder / "hf", self.base, "Qwen/Qwen3-8B")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
        return subprocess.run(
            [sys.executable, "-m", "autolayer", *arguments],
            cwd=self.work, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def result(self, out: str) -> Any:
        """The result as the library reads it back; Any, since each stage fills other fields."""
        return PickResult.read(self.work / out)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("mission"))


@pytest.fixture(scope="module")
def picked(home: Home) -> subprocess.CompletedProcess[str]:
    """The command itself, with thinking, which is the template's default."""
    return home.run(*MISSION, *SHORT, "--out", "run")


@pytest.fixture(scope="module")
def merged(home: Home, picked: Any) -> Path:
    done = home.run("merge", "run", "--out", "merged")
    assert done.returncode == 0, done.stderr
    assert "AutoModelForCausalLM.from_pretrained('merged')" in done.stdout
    return home.work / "merged"


def test_it_ends_well_and_shows_its_report(home: Home, picked: Any) -> None:
    assert picked.returncode == 0, picked.stderr
    assert "Qwen/Qwen3-8B, math, grpo" in picked.stdout and "Next: autolayer merge run --out" in picked.stdout
    assert "Traceback" not in picked.stderr
    files = {path.name for path in (home.work / "run").iterdir()}
    assert files >= {"calibration.json", "config.json", "layer.safetensors", "probe.json", "report.html", "result.json",
                     "study.db"}  # fmt: skip


def test_the_result_says_what_was_found(home: Home, picked: Any) -> None:
    result = home.result("run")
    assert (result.status, result.model, result.task, result.num_layers) == ("ok", "Qwen/Qwen3-8B", "math", 4)
    assert sorted(row.layer for row in result.ranking) == list(result.candidates) == [0, 1, 2, 3]
    assert sum(row.probability_best or 0.0 for row in result.ranking) == pytest.approx(1, abs=0.01)
    assert result.verdict in ("clear", "tied", "budget_spent") and result.stop_reason
    assert result.trained_layers == result.best_layers and len(result.trained_layers) == 1
    raced = [row for row in result.ranking if row.rungs]
    assert len(raced) >= 2, "the search compared at least two layers by short runs"
    assert set(result.baselines) == {"random", "first", "middle", "last", "position"}
    assert 0 < result.cost_share_of_full_run <= 0.5
    assert set(result.cost) == {"calibrate", "probe", "search", "train"}


def test_training_moves_the_score(home: Home, picked: Any) -> None:
    """Rewards are those of real completions: neither all right nor all wrong, and RL changes them for the better."""
    result = home.result("run")
    assert 0.15 < result.base_score < 0.7
    assert result.gain.value == pytest.approx(result.trained_score - result.base_score)
    assert result.gain.low > 0 and result.gain.num_items == 192


def test_the_patch_holds_the_trained_layer_and_names_its_base(home: Home, picked: Any) -> None:
    (layer,) = home.result("run").trained_layers
    patch = load_patch(home.work / "run" / "layer.safetensors")
    assert (patch.base, patch.layers, patch.task, patch.steps) == ("Qwen/Qwen3-8B", (layer,), "math", 40)
    assert patch.tensors and all(name.startswith(f"model.layers.{layer}.") for name in patch.tensors)
    base = load_file(home.base / "model.safetensors")
    assert any(not torch.equal(tensor, base[name]) for name, tensor in patch.tensors.items())


def test_the_merged_folder_is_a_plain_checkpoint(home: Home, merged: Path) -> None:
    (layer,) = home.result("run").trained_layers
    model: Any = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    base: Any = AutoModelForCausalLM.from_pretrained(home.base, dtype="auto")
    differing = {
        name for (name, new), (_, old) in zip(model.named_parameters(), base.named_parameters(), strict=True)
        if not torch.equal(new, old)
    }  # fmt: skip
    assert model.dtype == torch.bfloat16
    assert differing and all(name.startswith(f"model.layers.{layer}.") for name in differing)
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    prompt = [{"role": "user", "content": f"{problems(1)[0]['question']}\n\n{INSTRUCTION}"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=20, do_sample=False)[0])
    assert r"\boxed{" in text and text.endswith("<|im_end|>")


def test_the_merged_checkpoint_scores_what_was_reported(home: Home, merged: Path) -> None:
    """Same items, same noise: as the base of a new run it must reach exactly the trained score of the first one."""
    options = ("--layers", "0", "--learning-rate", "1e-6", "--out", "again")
    done = home.run("train", "--model", "merged", "--task", "math", *SMALL, "--steps", "1", *options)
    assert done.returncode == 0, done.stderr
    assert home.result("again").base_score == home.result("run").trained_score


def test_the_same_command_again_only_reads_the_result(home: Home, picked: Any) -> None:
    file = home.work / "run" / "result.json"
    before = file.stat().st_mtime_ns
    done = home.run(*MISSION, *SHORT, "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == file.read_text() and file.stat().st_mtime_ns == before


def test_without_thinking_the_answers_go_through_math_verify(home: Home) -> None:
    r"""There the model writes \boxed{\frac{14}{2}}, which no comparison of texts or numbers takes for 7."""
    done = home.run(*MISSION, *SMALL, "--steps", "20", "--no-thinking", "--until", "calibrate", "--json")
    assert done.returncode == 0, done.stderr
    (out,) = (home.work / "runs").iterdir()
    result = home.result(f"runs/{out.name}")
    assert json.dumps(result.to_dict(), indent=1) + "\n" == done.stdout
    assert json.loads((out / "config.json").read_text())["thinking"] is False
    calibration = json.loads((out / "calibration.json").read_text())
    assert 0.1 < calibration["mean_reward"] < 0.7
    example = calibration["example"]["completion"]
    assert example.startswith(r"\boxed{\frac{") and "<think>" not in example


def test_the_dry_run_of_the_bare_command_writes_nothing(home: Home) -> None:
    before = sorted(home.work.rglob("*"))
    done = home.run(*MISSION, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "4 layers" in done.stdout and "at most 10% of one full run" in done.stdout
    assert sorted(home.work.rglob("*")) == before
