"""Layers in float32 inside a bfloat16 model, against bit-for-bit copies."""

from typing import Any

import pytest
import torch
from layer_helpers import IDS, bits, changed, loss_of, state
from tiny_models import ARCHITECTURES, build_model

from autolayer.models.fp32 import fp32_layers
from autolayer.models.layers import find_layers


def widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_block_inside_a_bf16_model(architecture):
    model = build_model(architecture, dtype=torch.bfloat16)
    exact = build_model(architecture, dtype=torch.bfloat16).float()
    before, hooks = bits(model), state(model)
    inputs: list[Any] = []
    outputs: list[Any] = []
    block: Any = find_layers(exact)[1]
    with torch.no_grad():
        reference = model(input_ids=IDS).logits
        with fp32_layers(model, (1,)):
            inside = find_layers(model)[1]
            assert {p.dtype for p in inside.parameters()} == {torch.float32}
            handle = inside.register_forward_hook(
                lambda m, args, kwargs, out: (inputs.append((args, kwargs)), outputs.append(out))[0], with_kwargs=True
            )
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=IDS).logits
            handle.remove()
            assert logits.dtype == torch.bfloat16
            for p in inside.parameters():
                p.mul_(1.001)
        # The oracle: the same block of a float32 model on the same inputs, rounded at the end.
        args, kwargs = inputs[0]
        kwargs = {k: tuple(map(widened, v)) if isinstance(v, tuple) else widened(v) for k, v in kwargs.items()}
        oracle = block(*map(widened, args), **kwargs | {"past_key_values": None})
        assert outputs[0].dtype == torch.bfloat16
        assert torch.equal(outputs[0], oracle.to(torch.bfloat16))
        assert not changed(model, before)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert state(model) == hooks
        assert torch.equal(model(input_ids=IDS).logits, reference)


def test_fp32_gradients_and_small_steps():
    model = build_model("qwen3", dtype=torch.bfloat16)
    weight: torch.nn.Parameter = find_layers(model)[2].mlp.up_proj.weight  # pyright: ignore
    original = weight.detach().clone()  # pyright: ignore
    weight.grad = torch.ones_like(weight)  # pyright: ignore
    with fp32_layers(model, (2,)):
        loss_of(model).backward()
        assert weight.grad is not None and weight.grad.dtype == torch.float32
        with torch.no_grad():
            weight.add_(5e-6 * weight.grad.sign())
        assert torch.ne(weight, original.float()).float().mean() > 0.9
    assert torch.equal(weight, original)  # pyright: ignore
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16 and bool(weight.grad.eq(1).all())


def test_fp32_no_op_and_an_error_inside():
    model = build_model("qwen3_moe", dtype=torch.bfloat16)
    single = build_model("qwen3")
    with fp32_layers(single, "full"):
        assert "forward" not in find_layers(single)[0].__dict__
    with pytest.raises(KeyError), fp32_layers(model, (0, 1)):
        raise KeyError
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
