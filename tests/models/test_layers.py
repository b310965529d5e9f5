"""Finding and naming layers, against parameter-count formulas."""

import pytest
import torch
from layer_helpers import HIDDEN, block_size
from tiny_models import ARCHITECTURES, VOCABULARY, build_model

from autolayer.core.config import Config
from autolayer.core.depth_prior import DEPTH_BASELINES
from autolayer.core.errors import LayerError, ModelError
from autolayer.core.layer_set import parse_layers
from autolayer.models.layers import find_layers, head_ratio, layer_parameters


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mixtral"])
def test_counts_follow_the_formula(architecture):
    model = build_model(architecture)
    assert len(find_layers(model)) == 4
    chosen = layer_parameters(model, (1, 3))
    assert sum(p.numel() for p in chosen.values()) == 2 * block_size(architecture)
    assert all(name.startswith(("model.layers.1.", "model.layers.3.")) for name in chosen)
    routers = 4 * HIDDEN * 4 if architecture in ("qwen3_moe", "mixtral") else 0
    everything = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in layer_parameters(model, "full").values()) == everything - routers
    assert head_ratio(model) == pytest.approx(VOCABULARY * HIDDEN / (block_size(architecture) + routers / 4))


def test_gpt_oss_router_is_left_out():
    from transformers import AutoModelForCausalLM, GptOssConfig

    config = GptOssConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, num_local_experts=4, num_experts_per_tok=2, vocab_size=50, pad_token_id=0,
    )  # fmt: skip
    names = layer_parameters(AutoModelForCausalLM.from_config(config), (1,))
    block = {name for name, _ in find_layers(AutoModelForCausalLM.from_config(config))[1].named_parameters()}
    assert {f"model.layers.1.{name}" for name in block} - set(names) == {
        "model.layers.1.mlp.router.weight",
        "model.layers.1.mlp.router.bias",
    }


def test_tied_weights_count_once():
    model = build_model("qwen3", tied=True)
    everything = layer_parameters(model, "full")
    assert len({id(p) for p in everything.values()}) == len(everything)
    assert "lm_head.weight" not in everything
    assert head_ratio(model) > 0


def test_shared_and_foreign_models_are_refused():
    model = build_model("qwen3")
    blocks = find_layers(model)
    blocks[2].mlp.up_proj.weight = blocks[1].mlp.up_proj.weight  # pyright: ignore
    with pytest.raises(LayerError, match="shared with other layers"):
        layer_parameters(model, (1,))
    assert len(layer_parameters(model, (1, 2))) == 2 * 11 - 1
    with pytest.raises(ModelError, match="no list of decoder blocks in Linear"):
        find_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (0, 1, 2, 3, 4, 5)),
        (2, (2,)),
        (-1, (5,)),
        ("4", (4,)),
        ("-1", (5,)),
        ("1-3", (1, 2, 3)),
        ("-3--1", (3, 4, 5)),
        ("4, 1,1", (1, 4)),
        ([5, -5], (1, 5)),
        ("2-2", (2,)),
        ("middle", (3,)),
        (" middle:5 ", (1, 2, 3, 4, 5)),
        ("first:2", (0, 1)),
        ("last", (5,)),
        ("position:2", (2, 3)),  # predicted .81 .93 1.04 .98 .54 .25
    ],
)
def test_parse(text, expected):
    assert parse_layers(text, 6, "m") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (40, r"layer 40 does not exist: Qwen/Qwen3-8B has 36 blocks \(0..35, or -36..-1\)"),
        ("36", "layer 36 does not exist"),
        (-37, "layer -37 does not exist"),
        ("0-99999999999", "layer 99999999999 does not exist"),
        ("center", "or first, middle, last or position, with or without a number"),
        ("middle:0", "cannot be read"),
        ("middle:" + "9" * 5000, "cannot be read"),
        ("middle,3", "cannot be read"),
        ("last:37", "Qwen/Qwen3-8B has only 36 blocks"),
        ("", "cannot be read"),
        ("1,", "cannot be read"),
        ("1.5", "cannot be read"),
        (True, "cannot be read"),
        ("5-3", "give 3-5"),
        ([], "no layer given"),
        ("full", "'full' is no layer"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(LayerError, match=message):
        parse_layers(text, 36, "Qwen/Qwen3-8B")


def test_words_stay_words_until_the_model_is_known():
    assert Config(model="tiny", layers=" middle:3").layers == "middle:3"
    for name in DEPTH_BASELINES:
        assert len(parse_layers(f"{name}:2", 6, "m")) == 2


def test_parse_full_where_it_makes_sense():
    assert parse_layers("full", 6, "m", allow_full=True) == "full"
