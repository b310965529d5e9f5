"""MasterAdamW against torch's own AdamW and clipping."""

import pytest
import torch
from torch import nn

from autolayer.core.errors import TrainingError
from autolayer.training.optimizer import MasterAdamW


def _parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (5, 7), "b": (11,), "c": (2, 3, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def _give(parameters: dict[str, nn.Parameter], step: int, scale: float) -> None:
    """Sends a fixed random gradient of every step through autograd, so that the hooks see it."""
    generator = torch.Generator().manual_seed(step)
    factors = {name: torch.randn(p.shape, generator=generator) * scale for name, p in parameters.items()}
    sum((p * factors[name].to(p.dtype)).sum() for name, p in parameters.items()).backward()  # pyright: ignore


@pytest.mark.parametrize("scale", [0.01, 0.2, 30.0], ids=["unclipped", "just clipped", "clipped"])
def test_float32_steps_are_torchs_adamw_with_torchs_clipping_bit_for_bit(scale: float) -> None:
    ours, theirs = _parameters(), _parameters()
    optimizer = MasterAdamW(ours, lr=3e-3)
    reference = torch.optim.AdamW(theirs.values(), lr=3e-3, weight_decay=0.0)
    for step in range(6):
        _give(ours, step, scale)
        _give(theirs, step, scale)
        norm = nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
        reference.step()
        reference.zero_grad()
        assert (float(norm) > 1) == (scale > 0.1)
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_tiny_bf16_steps_add_up_in_the_master_where_plain_bf16_adamw_stands_still() -> None:
    start = torch.ones(1000, dtype=torch.bfloat16)  # the next bf16 below 1 is 0.0039 away
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = MasterAdamW({"w": ours}, lr=1e-4)
    plain = torch.optim.AdamW([theirs], lr=1e-4, weight_decay=0.0)
    for step in range(100):
        ours.sum().backward()
        theirs.sum().backward()
        optimizer.step()
        plain.step()
        plain.zero_grad()
        if step == 0:
            assert torch.equal(ours, start)  # one step is below the resolution
    assert torch.equal(theirs, start)
    torch.testing.assert_close(optimizer.masters["w"], torch.full((1000,), 1 - 100e-4), atol=1e-5, rtol=0)
    assert torch.equal(ours, optimizer.masters["w"].bfloat16()) and not torch.equal(ours, start)
    optimizer.close()


def test_micro_batches_add_up_in_float32() -> None:
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW({"w": parameter}, lr=1e-3)
    for _ in range(300):  # a bf16 sum of ones stops growing at 256
        parameter.sum().backward()
        assert parameter.grad is None
    gradient = optimizer.masters["w"].grad
    assert gradient is not None and gradient.dtype == torch.float32 and gradient.tolist() == [300.0] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_raises_and_changes_nothing(bad: float) -> None:
    parameters = _parameters()
    optimizer = MasterAdamW(parameters, lr=1e-3)
    for sentence in (r"(nan|inf) in the first step.*rate is not to blame", r"(nan|inf).*--learning-rate than 0\.001"):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        (parameters["a"] * bad).sum().backward()
        with pytest.raises(TrainingError, match=sentence):
            optimizer.step()
        assert all(torch.equal(before[name], p) for name, p in parameters.items())
        optimizer.inner.zero_grad()
        _give(parameters, step=0, scale=1.0)
        optimizer.step()


def test_the_rate_that_a_scheduler_sets_is_the_rate_that_is_used() -> None:
    ours, theirs = _parameters(), _parameters()
    optimizer = MasterAdamW(ours, lr=1e-3)
    reference = torch.optim.AdamW(theirs.values(), lr=1e-3, weight_decay=0.0)
    for step, rate in enumerate((1e-3, 5e-4, 2e-3)):
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = rate
        _give(ours, step, 0.01)
        _give(theirs, step, 0.01)
        optimizer.step()
        reference.step()
        reference.zero_grad()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_and_loaded_it_goes_on_as_if_never_stopped(dtype: torch.dtype) -> None:
    whole, half = _parameters(dtype), _parameters(dtype)
    straight, first = MasterAdamW(whole, lr=1e-2), MasterAdamW(half, lr=1e-2)
    for step in range(3):
        _give(whole, step, 1.0)
        straight.step()
        _give(half, step, 1.0)
        first.step()
    tensors = first.tensors()
    assert {key.split(":")[0] for key in tensors} == {"master", "step", "exp_avg", "exp_avg_sq"}
    fresh = _parameters(dtype)
    second = MasterAdamW(fresh, lr=1e-2)
    second.load_tensors(tensors)
    for step in range(3, 6):
        _give(whole, step, 1.0)
        straight.step()
        _give(fresh, step, 1.0)
        second.step()
    assert all(torch.equal(whole[name], fresh[name]) for name in whole)
    end, other = straight.tensors(), second.tensors()
    assert end.keys() == other.keys() and all(torch.equal(end[key], other[key]) for key in end)


def test_what_it_saves_does_not_change_under_further_steps() -> None:
    parameters = _parameters()
    optimizer = MasterAdamW(parameters, lr=1e-2)
    _give(parameters, 0, 1.0)
    optimizer.step()
    saved = optimizer.tensors()
    copies = {key: value.clone() for key, value in saved.items()}
    _give(parameters, 1, 1.0)
    optimizer.step()
    assert all(torch.equal(saved[key], copies[key]) for key in saved)


def test_closed_it_leaves_gradients_where_autograd_puts_them() -> None:
    parameters = _parameters()
    optimizer = MasterAdamW(parameters, lr=1e-2)
    optimizer.close()
    _give(parameters, 0, 1.0)
    assert all(p.grad is not None for p in parameters.values())


def test_the_update_size_is_that_of_the_change() -> None:
    optimizer = MasterAdamW(parameters := _parameters(), lr=3e-3)
    for step in range(3):
        before = {name: master.clone() for name, master in optimizer.masters.items()}
        _give(parameters, step, 0.2)
        optimizer.step()
    changed = sum((optimizer.masters[name] - before[name]).square().sum() for name in before)
    norm = sum(master.square().sum() for master in optimizer.masters.values())
    assert optimizer.update_size() == pytest.approx(float(changed / norm) ** 0.5, rel=1e-3)
