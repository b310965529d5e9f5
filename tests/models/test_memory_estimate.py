"""The memory that a pass keeps, estimated by shapes alone, is what autograd really saves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, build_model

from autolayer.core.layer_set import Layers
from autolayer.models.layers import layer_parameters
from autolayer.models.memory_estimate import MicroBatchShape, activation_bytes

WIDTH = 48
KEEPING = MicroBatchShape(width=WIDTH, tokens=WIDTH, activation_checkpointing=False, batch=1)


def really_kept(model: Any, layers: Layers) -> int:
    """Distinct storages that a real pass over one padded sequence saves."""
    model.requires_grad_(False)
    for parameter in layer_parameters(model, layers).values():
        parameter.requires_grad_(True)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, torch.UntypedStorage] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    mask = torch.ones(1, WIDTH, dtype=torch.long)
    mask[0, 0] = 0
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.get_decoder()(input_ids=mask, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [(0,), (2,), (1, 3), "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_alone_tell_what_is_kept(architecture: str, layers: Layers, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        empty = build_model(architecture, dtype=dtype).requires_grad_(False)
    real = really_kept(build_model(architecture, dtype=dtype), layers)
    mixture = architecture == "qwen3_moe" and dtype == torch.float32  # traced in bfloat16
    assert activation_bytes(empty, layers, KEEPING) == pytest.approx(real, rel=0.3 if mixture else 0.1)
    assert empty.dtype == dtype and not any(parameter.requires_grad for parameter in empty.parameters())


def test_layers_below_keep_nothing_and_recomputation_keeps_what_enters() -> None:
    with torch.device("meta"):
        model = build_model("qwen3", num_layers=8, hidden=64)
    by_lowest = [activation_bytes(model, (layer,), KEEPING) for layer in range(8)]
    assert all(lower > higher for lower, higher in zip(by_lowest, by_lowest[1:], strict=False))
    assert by_lowest[0] > 5 * by_lowest[7]
    entering = WIDTH * 64 * 4
    again = activation_bytes(model, (2,), replace(KEEPING, activation_checkpointing=True))
    assert 6 * entering <= again < 6 * entering + by_lowest[7] and again < 0.25 * by_lowest[2]


def test_the_size_of_micro_batches_and_shards_need_no_other_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = build_model("qwen3")
    found = activation_bytes(model, (2,), KEEPING)
    monkeypatch.setattr(model.model, "forward", lambda **_: pytest.fail("traced again"))
    assert activation_bytes(model, (2,), replace(KEEPING, tokens=8 * WIDTH, batch=8, shards=2)) == found
    with pytest.raises(pytest.fail.Exception):
        activation_bytes(model, (1,), KEEPING)
