"""The dtype that a model computes in, chosen by measurement, and what is trained and written in it."""

import json
from pathlib import Path

import pytest
import torch
from pick_helpers import SHORT
from tiny_models import build_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import autolayer
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.run_folder import RunFolder
from autolayer.models import computing_dtype as module
from autolayer.models.computing_dtype import computing_dtype, widen
from autolayer.models.loading import load_model
from autolayer.models.merge import merge
from autolayer.models.names import model_path
from autolayer.pipeline.setup import dtype_of_run
from autolayer.tasks import load_task
from autolayer.training.workbench import Workbench

BF16, FP32, CPU = torch.bfloat16, torch.float32, torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model in bfloat16."""
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_pretrained(model_path("tiny"), dtype=BF16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("tiny")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bf16_seconds", "expected"), [(0.5, BF16), (1.1, BF16), (5.0, FP32)])
def test_auto_takes_float32_on_a_cpu_where_it_is_clearly_faster(
    bf16_seconds: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_time_pass", lambda model, dtype: bf16_seconds if dtype == BF16 else 1.0)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    narrow = build_model("qwen3", dtype=BF16)
    assert computing_dtype(narrow, CPU, "auto") == expected
    assert computing_dtype(narrow, torch.device("cuda"), "auto") == BF16
    assert computing_dtype(build_model("qwen3"), CPU, "auto") == FP32
    assert computing_dtype(narrow, CPU, "checkpoint") == BF16 and computing_dtype(narrow, CPU, "float32") == FP32


def test_both_dtypes_are_really_timed_also_for_a_model_without_weights() -> None:
    with torch.device("meta"):
        narrow = build_model("qwen3", dtype=BF16)
    assert all(module._time_pass(narrow, dtype) > 0 for dtype in (BF16, FP32))
    assert computing_dtype(narrow, CPU, "auto") in (BF16, FP32)


def test_a_model_too_large_for_twice_the_memory_keeps_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_time_pass", lambda model, dtype: 9.0 if dtype == BF16 else 1.0)
    with torch.device("meta"):
        huge = build_model("qwen3", dtype=BF16, vocab_size=1 << 36)
    assert computing_dtype(huge, CPU, "auto") == BF16


def test_a_widened_model_has_the_weights_and_the_hash_of_its_checkpoint(base: Path) -> None:
    narrow, wide = load_model(str(base), "cpu"), load_model(str(base), "cpu")
    widen(narrow, BF16)
    widen(wide, FP32)
    assert not narrow.stored_dtypes and wide.model.dtype == FP32 and wide.weight_hash == narrow.weight_hash
    for name, parameter in narrow.model.named_parameters():
        assert torch.equal(wide.as_stored(name, wide.model.get_parameter(name)), parameter)


def test_what_is_trained_in_float32_is_written_and_scored_in_the_dtype_of_the_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"model": str(base), "steps": 3, "layers": "2", "learning_rate": 1e-3, "out": str(tmp_path / "run")}
    options = {**SHORT, **own}
    result = autolayer.train_layer(**options, dtype="float32")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dtype"] == "float32"
    patch = autolayer.load_patch(tmp_path / "run" / "layer.safetensors")
    assert {tensor.dtype for tensor in patch.tensors.values()} == {BF16}
    before = load_model(str(base), "cpu").model
    assert any(not torch.equal(tensor, before.get_parameter(name)) for name, tensor in patch.tensors.items())
    merge(None, tmp_path / "run" / "layer.safetensors", tmp_path / "merged")
    merged = load_model(str(tmp_path / "merged"), "cpu")
    assert merged.model.dtype == BF16
    widen(merged, FP32)
    config = autolayer.Config(model="tiny", task="math:arith", prompts_per_step=8)
    bench = Workbench(merged, load_task(config, chat=False), config, RunFolder(tmp_path / "unused"))
    rewards = bench.evaluate("eval", 200, seed=0).rewards_I
    assert sum(rewards) / len(rewards) == result.trained_score
    # A run keeps its dtype: auto measures nothing when it is resumed, and another dtype is refused.
    monkeypatch.setattr(module, "_time_pass", lambda model, dtype: 9.0 if dtype == FP32 else 1.0)
    assert dtype_of_run(autolayer.Config(**options), "train", before, CPU) == FP32
    assert autolayer.train_layer(**options).trained_score == result.trained_score
    with pytest.raises(RunFolderError, match="dtype: float32 there, checkpoint here"):
        autolayer.train_layer(**options, dtype="checkpoint")


def test_an_explicit_dtype_is_part_of_the_signature_and_does_not_go_with_shards() -> None:
    plain = autolayer.Config(model="tiny")
    assert plain.signature != autolayer.Config(model="tiny", dtype="float32").signature
    with pytest.raises(ConfigError, match="--shard does not go with --dtype float32"):
        autolayer.Config(model="tiny", shard=True, dtype="float32")
