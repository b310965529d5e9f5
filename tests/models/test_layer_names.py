"""Names of layers, found without weights, against the parameters that `layer_parameters` returns."""

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import ARCHITECTURES, build_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen3_5Config

from autolayer.core.errors import LayerError
from autolayer.models.layer_names import layer_names, names_in
from autolayer.models.layers import find_layers, layer_parameters, linear_module_names
from autolayer.reporting.export import Handover, export_text, linear_pattern, parameter_pattern


def found(model: torch.nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if re.search(pattern, name)}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mixtral"])
def test_the_patterns_find_what_autolayer_trains(architecture: str) -> None:
    model = build_model(architecture, num_layers=12)
    for layers in ((1,), (0, 10), (9, 10, 11)):
        names = names_in(model, layers)
        assert found(model, parameter_pattern(names)) == set(layer_parameters(model, layers))
        modules = {name for name, _ in model.named_modules() if re.fullmatch(linear_pattern(names), name)}
        assert modules == set(linear_module_names(model, layers))
        assert bool(names.frozen) == bool(names.unadapted) == (architecture in ("qwen3_moe", "mixtral"))


@pytest.mark.parametrize(
    ("architecture", "count", "config"),
    [
        ("qwen3", 7, {}),
        ("mixtral", 4, {}),
        ("qwen3_moe", 4, {"mlp_only_layers": [1]}),  # PEFT takes the dense gate_proj for the fused experts
        ("mamba", 3, {}),  # PEFT refuses its out_proj
    ],
)
def test_peft_trains_exactly_the_layers_adapters(architecture: str, count: int, config: dict[str, Any]) -> None:
    model: Any = build_model(architecture, num_layers=12, **config)
    modules = linear_module_names(model, (1,))
    space: dict[str, Any] = {"model": model}
    exec(export_text("peft", Handover(names=names_in(model, 1), model="m", path="m", lora=(4, 8))), space)
    assert isinstance(space["model"], peft.PeftModel)
    trained = {name for name, p in space["model"].named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.{name}.lora_{factor}.default.weight" for name in modules for factor in "AB"}
    assert len(modules) == count and all(".layers.1." in name for name in modules)


def test_a_checkpoint_with_images_has_both_names(tmp_path: Path) -> None:
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 99, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip
    vision = {"depth": 12, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3_5Config(text_config=text, vision_config=vision)
    config.architectures = ["Qwen3_5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    names = layer_names(str(tmp_path), "1,-1")
    assert (names.layers, names.num_layers, len(names.prefixes)) == ((1, 11), 12, 2)
    with torch.device("meta"):
        models = [auto.from_config(config) for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)]
    for model in models:
        inside = {id(p) for layer in names.layers for p in find_layers(model)[layer].parameters()}
        expected = {name for name, p in model.named_parameters() if id(p) in inside}
        assert found(model, parameter_pattern(names)) == expected and expected
    assert any("visual" in name for name, _ in models[1].named_parameters())


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(LayerError, match="layer 4 does not exist"):
        names_in(build_model("qwen3"), 4)
