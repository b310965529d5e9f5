"""The report of what trains, against counts by hand."""

import peft
import pytest
import torch
from layer_helpers import HIDDEN, block_size
from tiny_models import VOCABULARY, build_model

import autolayer
from autolayer.core.errors import ModelError


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe"])
def test_it_counts_each_part_once(architecture: str) -> None:
    model = build_model(architecture)
    routers = 4 * 4 * HIDDEN if architecture == "qwen3_moe" else 0
    with autolayer.train_only(model, (1, 2), quiet=True):
        report = autolayer.freeze_report(model)
    assert report.layers == (1, 2)
    assert [(share.trainable, share.total) for share in report.blocks] == [
        (size if index in (1, 2) else 0, size) for index, size in enumerate([block_size(architecture)] * 4)
    ]
    parts = {"embeddings": VOCABULARY * HIDDEN, "head": VOCABULARY * HIDDEN, "norms": HIDDEN, "routers": routers}
    for part, total in parts.items():
        share = getattr(report, part)
        assert (share.trainable, share.total) == (0, total)
    assert report.other.total == 0
    assert report.total.total == sum(p.numel() for p in model.parameters())
    assert report.total.trainable == 2 * block_size(architecture)


def test_the_table() -> None:
    model = build_model("qwen3_moe", tied=True)
    with autolayer.train_only(model, 2, quiet=True):
        model.get_input_embeddings().weight.requires_grad_(True)
        lines = str(autolayer.freeze_report(model)).splitlines()
    size, embedding = block_size("qwen3_moe"), VOCABULARY * HIDDEN
    assert lines[0].startswith(f"Qwen3MoeForCausalLM: {size + embedding:,} of ")
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "layers 0 and 1 frozen", f"layer 2 {size:,} of {size:,}", "layer 3 frozen", "routers frozen",
        f"embeddings {embedding:,} of {embedding:,}", "norms frozen",
    ]  # fmt: skip


def test_a_share_of_a_block_and_wrappers() -> None:
    model = build_model("qwen3")
    config = peft.LoraConfig(r=2, target_modules=r"model\.layers\.3\.mlp\.up_proj")
    report = autolayer.freeze_report(torch.nn.DataParallel(peft.get_peft_model(model, config)))
    assert report.layers == (3,) and report.total.trainable == report.blocks[3].trainable == 2 * (32 + 64)
    assert f"{2 * 96:,} of {block_size('qwen3') + 2 * 96:,} (" in str(report)
    assert "layers 0-2  frozen" in str(report)


def test_another_module_is_refused() -> None:
    with pytest.raises(ModelError, match="no list of decoder blocks in Linear"):
        autolayer.freeze_report(torch.nn.Linear(2, 2))
