"""Frozen layers in fewer bits: what is trained stays exact, and gradients pass."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, build_model

import autolayer
from autolayer.core.errors import ConfigError, LayerError, ModelError
from autolayer.models.layers import find_layers, head_ratio, linear_module_names
from autolayer.models.loading import load_model
from autolayer.models.patch import apply, load_patch
from autolayer.models.quantization import quantize_frozen

CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


def rounded(weight: torch.Tensor, frozen: str) -> torch.Tensor:
    """The weights that a packed map stands for, by the formats' definitions."""
    if frozen == "8bit":
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        return ((weight.float() / scale).round() * scale).to(weight.dtype)
    levels = torch.tensor(NF4)
    blocks = weight.float().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale)[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * scale).reshape(weight.shape).to(weight.dtype)


NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302,
       0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)  # fmt: skip
"""Table E of arXiv 2305.14314."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_packed_model_is_the_one_with_rounded_weights(kind: str, frozen: str, dtype: torch.dtype) -> None:
    model = build_model(kind, hidden_size=64, intermediate_size=128, head_dim=32, dtype=dtype)  # rows of whole blocks
    plain, ratio = copy.deepcopy(model), head_ratio(model)
    names = linear_module_names(model, [index for index in range(len(find_layers(model))) if index != 1])
    share = sum(model.get_submodule(name).weight.numel() for name in names) / sum(p.numel() for p in model.parameters())
    assert quantize_frozen(model, (1,), frozen, CPU) == pytest.approx(share)
    with torch.no_grad():
        for name in names:
            exact = plain.get_submodule(name).weight
            assert not torch.equal(exact, rounded(exact, frozen))
            exact.copy_(rounded(exact, frozen))
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.1}
    for each in (model, plain):
        for parameter in find_layers(each)[1].parameters():
            parameter.requires_grad_(True)
        each.train()(IDS).logits.float().square().mean().backward()
    with torch.no_grad():
        found, expected = (each.eval()(IDS).logits.log_softmax(-1) for each in (model, plain))
    torch.testing.assert_close(found, expected, **close)
    assert head_ratio(model) == pytest.approx(ratio), "costs are those of the model, however it is packed"
    for mine, other in zip(find_layers(model)[1].parameters(), find_layers(plain)[1].parameters(), strict=True):
        assert torch.equal(mine, other) and mine.grad is not None and other.grad is not None
        assert float((mine.grad - other.grad).norm()) <= (1e-4 if dtype == torch.float32 else 0.1) * float(
            other.grad.norm()
        )


@pytest.mark.parametrize("frozen", ["8bit", "4bit"])
def test_a_packed_map_keeps_nothing_of_what_goes_through_it(frozen: str) -> None:
    model = build_model("qwen3", hidden_size=64, intermediate_size=128, head_dim=32)
    quantize_frozen(model, (1,), frozen, CPU)
    packed = model.get_submodule(linear_module_names(build_model("qwen3"), [2])[0])
    states = torch.randn(3, 64, requires_grad=True) * 1
    gone = weakref.ref(states)
    output = packed(states)
    del states
    assert output.requires_grad and gone() is None


@pytest.mark.parametrize("frozen", ["8bit", "4bit"])
def test_the_proof_of_a_freeze_sees_scales(frozen: str) -> None:
    model = build_model("qwen3", hidden_size=64, intermediate_size=128, head_dim=32)
    quantize_frozen(model, (1,), frozen, CPU)
    with pytest.raises(LayerError, match="scale"), autolayer.train_only(model, "1"), torch.no_grad():  # noqa: PT012
        model.get_parameter("model.layers.2.mlp.up_proj.scale").mul_(2)


def test_rows_of_broken_blocks_stay_as_they_are_in_4_bits() -> None:
    model = build_model("qwen3", intermediate_size=96)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="finds no linear map that it could pack"):
        quantize_frozen(model, (1,), "4bit", CPU)
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
    assert any("were held in 8 bits" in note for note in small.notes)
    layer, base = load_file(tmp_path / "small" / "layer.safetensors"), load_model("tiny").model.state_dict()
    assert layer.keys() == load_file(tmp_path / "plain" / "layer.safetensors").keys()
    assert all(layer[name].shape == base[name].shape and layer[name].dtype == base[name].dtype for name in layer)
    apply(load_model("tiny").model, load_patch(tmp_path / "small" / "layer.safetensors"))


def test_only_a_named_layer_can_be_trained_so() -> None:
    for verb, layers in ((autolayer.pick, None), (autolayer.train_layer, "full")):
        with pytest.raises(ConfigError, match="belongs to `train`|leaves no layer"):
            verb(model="tiny", task="math:arith", frozen="8bit", layers=layers, learning_rate=1e-3, device="cpu")
    with pytest.raises(ValueError, match="Did you mean '8bit'"):
        autolayer.train_layer(model="tiny", task="math:arith", layers="2", **cast(Any, {"frozen": "8bits"}))
    with pytest.raises(ConfigError, match="would sample from the unquantized model"):
        autolayer.train_layer(model="tiny", task="math:arith", frozen="8bit", layers="2", rollouts="vllm")


@pytest.mark.parametrize("frozen", ["8bit", "4bit"])
def test_it_goes_with_everything_that_train_does(frozen: str, tmp_path: Path) -> None:
    """A rate from the probes, a reference, adapters and recomputation, cut in two and gone on with."""
    options = {
        "model": "tiny", "task": "math:arith", "layers": "2", "steps": 3, "prompts_per_step": 4, "num_eval": 32,
        "device": "cpu", "frozen": frozen, "beta": 0.02, "adapter": "lora", "activation_checkpointing": True,
    }  # fmt: skip
    whole = autolayer.train_layer(**options, out=str(tmp_path / "whole"))
    (tmp_path / "whole" / "result.json").unlink()
    again = autolayer.train_layer(**options, out=str(tmp_path / "whole"))
    assert again.learning_rate == whole.learning_rate and again.trained_score == whole.trained_score
