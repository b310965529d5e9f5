"""Training the named layers alone: nothing else changes, all is put back, and what cannot be right is an error."""

import gc
import warnings

import pytest
import torch
from layer_helpers import IDS, bits, block_size, changed, loss_of, state, steps
from tiny_models import ARCHITECTURES, build_model

from autolayer.core.errors import LayerError
from autolayer.models.freeze_check import checksum
from autolayer.models.layers import layer_parameters
from autolayer.models.train_only import train_only


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
def test_checksum_sees_signs_places_and_single_bits(dtype):
    tensor = (torch.randn(37, 29) * 50).to(dtype)
    base = checksum(tensor)
    assert checksum(tensor.clone()) == base == checksum(tensor.t().contiguous().t())
    for edit in (lambda t: t.neg_(), lambda t: t.copy_(t.flip(0)), lambda t: t.view(-1)[-1].add_(1)):
        other = tensor.clone()
        edit(other)
        assert checksum(other) != base
    swapped = tensor.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert checksum(swapped) != base
    zeros = torch.zeros(16)
    assert checksum(zeros) != checksum(-zeros)
    assert checksum(torch.zeros(0)) != checksum(zeros)
    assert checksum(torch.tensor(1.0)) == checksum(torch.ones(3)[1:2])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_layers_change(architecture, dtype, capsys):
    model = build_model(architecture, dtype=dtype)
    before = bits(model)
    expected = set(layer_parameters(model, (2,)))
    with train_only(model, -2) as trainable:
        assert {n for n, p in model.named_parameters() if p.requires_grad} == expected
        steps(model)
    assert changed(model, before) <= expected
    assert changed(model, before)
    assert trainable.trainable == block_size(architecture)
    assert trainable.total == sum(p.numel() for p in model.parameters())
    assert trainable.share == trainable.trainable / trainable.total
    printed = capsys.readouterr()
    assert f"training layer 2 of 4: {trainable.trainable:,} of {trainable.total:,}" in printed.err
    assert not printed.out


def test_full_trains_everything():
    model = build_model("qwen3", tied=True)
    before = bits(model)
    with train_only(model, "full", quiet=True) as trainable:
        steps(model)
    assert changed(model, before) == set(before)
    assert trainable.share == 1


@pytest.mark.parametrize("raises", [False, True])
def test_leaving_restores_everything(tiny_model, raises, capsys):
    for index, p in enumerate(tiny_model.parameters()):
        p.requires_grad_(index % 2 == 0)
    next(tiny_model.parameters()).grad = torch.ones_like(next(tiny_model.parameters()))
    before = state(tiny_model)
    try:
        with train_only(tiny_model, (0, 3)):
            assert next(tiny_model.parameters()).grad is None
            tiny_model.forward = tiny_model.forward
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tiny_model.gradient_checkpointing_enable()
            steps(tiny_model, 1)
            assert state(tiny_model) != before
            if raises:
                raise KeyError("mine")
    except KeyError:
        assert raises
    assert state(tiny_model) == before


def test_nested_and_again(tiny_model):
    before = bits(tiny_model)
    with train_only(tiny_model, 0, quiet=True):
        steps(tiny_model, 1)
        with train_only(tiny_model, 2, quiet=True):
            steps(tiny_model, 1)
        assert {n for n, p in tiny_model.named_parameters() if p.requires_grad} == set(
            layer_parameters(tiny_model, (0,))
        )
        steps(tiny_model, 1)
    assert changed(tiny_model, before) == set(layer_parameters(tiny_model, (0, 2)))
    with train_only(tiny_model, 1, quiet=True):
        steps(tiny_model)
    with train_only(tiny_model, 1, quiet=True):
        pass  # no steps are no error


def test_a_changed_frozen_weight_is_named(tiny_model):
    head = tiny_model.lm_head.weight
    with (
        pytest.raises(LayerError, match=r"frozen weights changed .* lm_head\.weight; something else writes"),
        train_only(tiny_model, 1, quiet=True),
    ):
        optimizer = torch.optim.SGD([p for p in tiny_model.parameters() if p.requires_grad], lr=0.1)
        loss_of(tiny_model).backward()
        with torch.no_grad():
            head[3, 5] = -head[3, 5]
        optimizer.step()
        pytest.fail("the first step must raise")
    with (
        pytest.raises(LayerError, match=r"embed_tokens.weight, .* and 33 more"),
        train_only(tiny_model, 1, quiet=True),
        torch.no_grad(),
    ):
        for name, p in tiny_model.named_parameters():
            if ".1." not in name:
                p.view(-1)[[0, 1]] = p.view(-1)[[1, 0]]
                p.view(-1)[0] += 1


def test_steps_without_gradient_are_an_error(tiny_model):
    def idle():
        optimizer = torch.optim.SGD([p for p in tiny_model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            (loss_of(tiny_model) * 0).backward()
            optimizer.step()

    with (
        pytest.raises(LayerError, match=r"no gradient reached layers 1 and 2 in 3 optimizer steps"),
        train_only(tiny_model, "1-2", quiet=True),
    ):
        idle()
    with train_only(tiny_model, "1-2", quiet=True) as trainable:
        idle()
        trainable.expect_gradient = False
    with pytest.raises(KeyError), train_only(tiny_model, 1, quiet=True):  # its own error is the one to see
        idle()
        raise KeyError


def test_zero_steps_first_then_a_real_one(tiny_model):
    with train_only(tiny_model, 1, quiet=True):
        optimizer = torch.optim.SGD([p for p in tiny_model.parameters() if p.requires_grad], lr=0.1)
        for factor in (0, 0, 1, 0):
            (loss_of(tiny_model) * factor).backward()
            optimizer.step()
            optimizer.zero_grad()


def test_a_layer_that_the_loss_does_not_reach_is_named(tiny_model):
    with (
        pytest.raises(LayerError, match="no gradient reached layer 3 although it reached the other"),
        train_only(tiny_model, "1,3", quiet=True),
    ):
        optimizer = torch.optim.SGD([p for p in tiny_model.parameters() if p.requires_grad], lr=0.1)
        tiny_model(input_ids=IDS, output_hidden_states=True).hidden_states[2].sum().backward()
        optimizer.step()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("held", ["other layers", "some layers"])
def test_an_optimizer_built_before_is_refused(tiny_model, number, held):
    own = {"other layers": (0,), "some layers": (0, 1)}[held]
    parameters = list(layer_parameters(tiny_model, own).values())
    missing = {"other layers": "layers 1 and 3", "some layers": "layer 3"}[held]
    with (
        pytest.raises(LayerError, match=f"the optimizer does not hold {missing}, .* built before train_only"),
        train_only(tiny_model, (1, 3), quiet=True),
    ):
        steps(tiny_model, number, parameters)


def test_two_optimizers_share_a_layer_and_others_are_ignored(tiny_model):
    other = torch.nn.Linear(3, 3)
    elsewhere = torch.optim.SGD(other.parameters(), lr=0.1)
    with train_only(tiny_model, 1, quiet=True):
        trained = [p for p in tiny_model.parameters() if p.requires_grad]
        pair = [torch.optim.SGD([p for p in trained if (p.ndim == 1) == flat], lr=0.1) for flat in (True, False)]
        for _ in range(3):
            other(torch.ones(3)).sum().backward()
            elsewhere.step()
            loss_of(tiny_model).backward()
            for optimizer in pair:
                optimizer.step()
                optimizer.zero_grad()


def test_float32_masters_that_take_the_gradient_away():
    model = build_model("llama", dtype=torch.bfloat16)
    before = bits(model)
    with train_only(model, 1, quiet=True):
        masters = {}
        for p in model.parameters():
            if p.requires_grad:
                masters[p] = p.detach().float().clone()

                def move(parameter):
                    masters[parameter].grad = parameter.grad.float()
                    parameter.grad = None

                p.register_post_accumulate_grad_hook(move)
        optimizer = torch.optim.AdamW(masters.values(), lr=1e-2)
        for _ in range(3):
            loss_of(model).backward()
            optimizer.step()
            with torch.no_grad():
                for p, master in masters.items():
                    p.copy_(master)
    assert changed(model, before) == set(layer_parameters(model, (1,)))


def test_a_failure_while_entering_leaves_nothing(tiny_model, monkeypatch):
    before = state(tiny_model)
    monkeypatch.setattr("autolayer.models.freeze_check.checksum", lambda tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError), train_only(tiny_model, 1, quiet=True):
        pass
    assert state(tiny_model) == before


def test_models_are_not_kept_alive():
    from autolayer.models.freeze_check import _ACTIVE

    model = build_model("llama", num_layers=2)
    with train_only(model, 1, quiet=True):
        steps(model, 1)
    del model
    gc.collect()
    assert not len(_ACTIVE)


@pytest.mark.filterwarnings("ignore")
def test_around_trl(tiny_folder, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype="auto")
    before, was = bits(model), state(model)
    with train_only(model, 2, quiet=True):
        trainer = GRPOTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            reward_funcs=lambda completions, **_: [float(sum(map(ord, text)) % 7) for text in completions],
            train_dataset=Dataset.from_list([{"prompt": f"{n}+{n}="} for n in range(8)]),
            args=GRPOConfig(
                output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=2, per_device_train_batch_size=8,
                num_generations=4, max_completion_length=6, learning_rate=1e-3, report_to=[], save_strategy="no",
                disable_tqdm=True, logging_strategy="no",
            ),
        )  # fmt: skip
        trainer.train()
    assert trainer.state.global_step == 2
    assert changed(model, before) == set(layer_parameters(model, (2,)))
    assert state(model) == was
