"""Throughput is measured on a few blocks of a model's shape."""

from pathlib import Path

import pytest
import torch
from tiny_models import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from autolayer.core.costs import CostModel, PassSize
from autolayer.pipeline.throughput import Throughput, measure_throughput

COSTS = CostModel(num_layers=4, head_ratio=0.5)


def test_time_is_that_of_the_passes_and_of_the_generated_tokens() -> None:
    throughput = Throughput(layer_token=2.0, decode_step=6.0, batch=3)
    sampled = COSTS.generate(10, 5)
    assert throughput.seconds(sampled, COSTS) == pytest.approx(10 * 4 * 2 + 5 * 6 / 3)
    assert throughput.seconds(sampled + COSTS.train(PassSize(tokens=15, scored=5), (3,)), COSTS) == pytest.approx(
        throughput.seconds(sampled, COSTS) + COSTS.train(PassSize(tokens=15, scored=5), (3,)).layer_tokens * 2
    )


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "gemma3", "qwen3_moe"])
@pytest.mark.parametrize("vllm", [False, True])
def test_shapes_are_timed(kind: str, vllm: bool, tmp_path: Path) -> None:
    with torch.device("meta"):
        shape = build_model(kind)
    found = measure_throughput(shape, build_tokenizer(), COSTS, torch.device("cpu"), width=24, batch=8, vllm=vllm)
    assert found is not None and found.batch == 8
    assert 0 < found.layer_token < 1 and found.layer_token < found.decode_step < 10


def test_what_cannot_be_made_smaller_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = build_model("qwen3")
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_, **__: shape.no_such_thing)
    assert (
        measure_throughput(shape, build_tokenizer(), COSTS, torch.device("cpu"), width=24, batch=8, vllm=False) is None
    )
