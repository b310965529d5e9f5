"""One layer of every supported architecture, from the folder on disk to the merged checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build
from transformers import AutoModelForCausalLM
from workbench_helpers import assert_equal, differing, make_task, mean_id, weights_of

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.run_folder import RunFolder
from autolayer.models.layers import find_layers
from autolayer.models.loading import LoadedModel, load_model
from autolayer.models.merge import merge
from autolayer.models.patch import LayerPatch, apply, load_patch
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

LAYER, NUM_LAYERS, STEPS = 2, 4, 2
CASES = {
    "qwen2": ("qwen2", torch.float32, True),
    "qwen3": ("qwen3", torch.bfloat16, False),
    "qwen3-tied": ("qwen3", torch.bfloat16, True),
    "llama": ("llama", torch.bfloat16, False),
    "gemma3": ("gemma3", torch.float32, True),
    "qwen3_moe": ("qwen3_moe", torch.float32, False),
    "qwen3_moe-bf16": ("qwen3_moe", torch.bfloat16, False),
}
"""Architecture, dtype, and whether the head is the embedding."""


@dataclass
class Trained:
    """Two RL steps on one layer, and what is needed to check them."""

    base: Path
    loaded: LoadedModel
    bench: Workbench
    arm: Arm
    before: dict[str, torch.Tensor]
    during: list[dict[str, torch.Tensor]]
    """All weights after each optimizer step."""
    rewards: list[list[float]]
    """Rewards of each step's completions, group by group."""
    patch: Path

    @property
    def trained_names(self) -> set[str]:
        """Returns the layer's names in the checkpoint, which the code under test never reads."""
        inside = {name for name in self.before if name.startswith(f"model.layers.{LAYER}.")}
        return {name for name in inside if not name.endswith("mlp.gate.weight")}  # the router of a mixture


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    architecture, dtype, tied = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    base = build(architecture, folder / "base", num_layers=NUM_LAYERS, dtype=dtype, tied=tied)
    loaded = load_model(str(base))
    rewards: list[list[float]] = []

    def reward(prompts: list, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        rewards.append(mean_id(prompts, completion_ids))
        return rewards[-1]

    config = Config(model="random", prompts_per_step=4, group_size=4)
    bench = Workbench(loaded, make_task(reward), config, RunFolder(folder / "run"))
    before, during = weights_of(loaded.model), []
    arm = train_arm(
        bench,
        Arm(layers=(LAYER,), learning_rate=1e-2, seed=0),
        STEPS,
        on_step=lambda _: during.append(weights_of(bench.model)),
    ).arm
    patch = LayerPatch(
        tensors=bench.arm_weights(arm) or {},
        base=loaded.name,
        base_hash=loaded.weight_hash,
        layers=arm.layers,
        task="test",
        algorithm="grpo",
        steps=arm.step,
    )
    patch.save(folder / "layer.safetensors")
    return Trained(base, loaded, bench, arm, before, during, rewards, folder / "layer.safetensors")


def test_its_blocks_are_found(trained: Trained) -> None:
    model: Any = trained.loaded.model
    assert trained.loaded.num_layers == NUM_LAYERS
    assert find_layers(model) is model.model.layers


def test_exactly_the_layer_is_trained(trained: Trained) -> None:
    """Rewards differ within groups in both steps, so there is something to learn; a router stays as it is."""
    assert len(trained.rewards) == len(trained.during) == STEPS
    groups = torch.tensor(trained.rewards).view(STEPS, -1, 4)
    assert bool((groups.amax(2) > groups.amin(2)).any(1).all())
    assert set(trained.bench.parameters((LAYER,))) == trained.trained_names
    for weights in trained.during:
        assert differing(trained.before, weights) <= trained.trained_names
    # What is too small to be seen after rounding to bfloat16 may stay; the matrices may not.
    changed = differing(trained.before, trained.during[-1])
    assert changed >= {name for name in trained.trained_names if trained.before[name].dim() > 1}
    assert differing(trained.during[0], trained.during[1])


def test_the_base_is_back_after_training(trained: Trained) -> None:
    assert_equal(weights_of(trained.loaded.model), trained.before)
    assert not any(parameter.requires_grad for parameter in trained.loaded.model.parameters())


def test_the_patch_holds_the_trained_layer(trained: Trained) -> None:
    tensors = load_patch(trained.patch).tensors
    assert set(tensors) == trained.trained_names
    assert_equal(tensors, {name: trained.during[-1][name] for name in tensors})


def test_the_merged_folder_is_the_patched_model(trained: Trained, tmp_path: Path) -> None:
    """Loaded by plain transformers, with the same logits; every tensor outside the layer is the base's own."""
    out = merge(str(trained.base), trained.patch, tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    patched = load_model(str(trained.base)).model
    apply(patched, load_patch(trained.patch))
    assert_equal(weights_of(merged), weights_of(patched))
    ids = torch.randint(2, 90, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(merged(input_ids=ids).logits, patched(input_ids=ids).logits)
        assert not torch.equal(merged(input_ids=ids).logits, trained.loaded.model(input_ids=ids).logits)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained.base, out))
    assert before.keys() == after.keys()
    assert differing(before, after) and all(f".layers.{LAYER}." in name for name in differing(before, after))
    assert merged.dtype == trained.loaded.model.dtype
