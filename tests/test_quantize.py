"""Frozen layers in fewer bits: what is trained stays exact, and gradients pass. Run: pytest tests/test_quantize.py"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, build_model

import autolayer
from autolayer.errors import ConfigError
from autolayer.layers import find_layers, head_ratio, linear_maps
from autolayer.models import load_model
from autolayer.patch import apply, load_patch
from autolayer.quantize import quantize_frozen

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


def unpacked(module: Any) -> torch.Tensor:
    """The weights that a quantized map stands for, by the formats' own definitions."""
    import bitsandbytes.functional as formats  # pyright: ignore[reportMissingImports]

    weight = module.weight
    if weight.dtype == torch.int8:  # one scale for each row
        return weight.data.float() * weight.SCB[:, None] / 127
    return formats.dequantize_4bit(weight.data, weight.quant_state)


@pytest.mark.parametrize("frozen", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_quantized_model_is_the_one_with_rounded_weights(kind: str, frozen: str) -> None:
    model = build_model(kind, hidden_size=64, intermediate_size=128, head_dim=32)  # rows of whole blocks
    plain, ratio = copy.deepcopy(model), head_ratio(model)
    names = linear_maps(model, [index for index in range(len(find_layers(model))) if index != 1])
    assert quantize_frozen(model, (1,), frozen, CPU) == len(names) > 0
    with torch.no_grad():
        for name in names:
            rounded, exact = unpacked(model.get_submodule(name)), plain.get_submodule(name).weight
            # Half a step of the widest kind; LLM.int8 rounds up to a whole one, and its scale as well.
            step = exact.abs().amax() / (127 if frozen == "8bit" else 6)
            assert 0 < float((rounded - exact).abs().max()) <= 1.05 * float(step)
            exact.copy_(rounded)
        found, expected = (m.train().eval()(IDS).logits.log_softmax(-1) for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if frozen == "8bit" else 1e-5)
    assert head_ratio(model) == pytest.approx(ratio), "costs are those of the model, however it is packed"

    for parameter in find_layers(model)[1].parameters():
        parameter.requires_grad_(True)
    logits = model.train()(IDS).logits
    torch.testing.assert_close(logits.log_softmax(-1), found, rtol=0, atol=1e-5)  # samples are from what is trained
    logits.square().mean().backward()
    for (name, parameter), exact in zip(
        find_layers(model)[1].named_parameters(), find_layers(plain)[1].parameters(), strict=True
    ):
        assert torch.equal(parameter, exact), f"{name} is trained, and was left alone"
        assert parameter.grad is not None and bool(parameter.grad.any())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_rows_of_broken_blocks_stay_as_they_are_in_4_bits() -> None:
    model = build_model("qwen3", intermediate_size=96)
    before = copy.deepcopy(model.state_dict())
    assert quantize_frozen(model, (1,), "4bit", CPU) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_train_keeps_the_rest_in_few_bits_and_the_layer_fits_the_base(tmp_path: Path) -> None:
    options = {
        "model": "tiny", "task": "math:arith", "layers": "2", "steps": 12, "prompts_per_step": 16, "num_eval": 256,
        "device": "cpu",
    }  # fmt: skip
    plain = autolayer.train_layer(**options, learning_rate=3e-3, out=str(tmp_path / "plain"))
    small = autolayer.train_layer(**options, learning_rate=3e-3, frozen="8bit", out=str(tmp_path / "small"))
    assert small.base_score is not None and plain.base_score is not None and small.gain is not None
    assert abs(small.base_score - plain.base_score) < 0.1 and small.gain.low > 0
    assert any("held in 8 bits" in note for note in small.notes)
    layer, base = load_file(tmp_path / "small" / "layer.safetensors"), load_model("tiny").model.state_dict()
    assert layer.keys() == load_file(tmp_path / "plain" / "layer.safetensors").keys()
    assert all(layer[name].shape == base[name].shape and layer[name].dtype == base[name].dtype for name in layer)
    apply(load_model("tiny").model, load_patch(tmp_path / "small" / "layer.safetensors"))


def test_only_a_named_layer_can_be_trained_so() -> None:
    for verb, layers in ((autolayer.pick, None), (autolayer.train_layer, "full")):
        with pytest.raises(ConfigError, match="--frozen belongs to `train`"):
            verb(model="tiny", task="math:arith", frozen="8bit", layers=layers, learning_rate=1e-3, device="cpu")
    with pytest.raises(ValueError, match="Did you mean '8bit'"):
        autolayer.train_layer(model="tiny", task="math:arith", layers="2", frozen="8bits")
