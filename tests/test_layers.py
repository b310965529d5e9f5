"""Finding, naming, freezing and widening layers, against parameter-count formulas and bit-for-bit copies."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, VOCABULARY, build_model
from torch.optim.optimizer import _global_optimizer_post_hooks

from autolayer.errors import LayerError, ModelError
from autolayer.freeze import checksum
from autolayer.layers import find_layers, fp32_layers, head_ratio, layer_parameters, parse_layers, train_only

HIDDEN, INTERMEDIATE, HEAD, KV = 32, 64, 8, 2
IDS = torch.arange(2, 26).reshape(2, 12)


def loss_of(model):
    return model(input_ids=IDS, labels=IDS).loss


def bits(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def steps(model, number=2, parameters=None, **kwargs):
    chosen = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    optimizer = torch.optim.AdamW(chosen, lr=1e-2, **kwargs)
    for _ in range(number):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def block_size(architecture):
    """Parameters of one trained block, by hand."""
    attention = HIDDEN * HIDDEN * 2 + 2 * HIDDEN * KV * HEAD
    mlp = 3 * HIDDEN * INTERMEDIATE
    extra = {
        "qwen2": HIDDEN + 2 * KV * HEAD,  # q, k, v biases
        "qwen3": 2 * HEAD,  # q, k norms
        "llama": 0,
        "gemma3": 2 * HEAD + 2 * HIDDEN,  # q, k norms and two more block norms
        "qwen3_moe": 2 * HEAD,
        "mixtral": 0,
    }[architecture]
    if architecture == "qwen3_moe":
        mlp = 4 * 3 * HIDDEN * 16
    if architecture == "mixtral":
        mlp = 4 * 3 * HIDDEN * INTERMEDIATE
    return attention + mlp + 2 * HIDDEN + extra


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
        ("middle", "cannot be read"),
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


def test_parse_full_where_it_makes_sense():
    assert parse_layers("full", 6, "m", allow_full=True) == "full"


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


def state(model):
    modules = list(model.modules())
    return (
        [(n, p.requires_grad, id(p.grad)) for n, p in model.named_parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules],
        [len(p._backward_hooks or ()) for p in model.parameters()],
        [len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for p in model.parameters()],
        len(_global_optimizer_post_hooks),
        model.__dict__.get("forward"),
        [getattr(m, "gradient_checkpointing", None) for m in modules],
    )


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
        pytest.raises(LayerError, match=r"no gradient reached layers 1, 2 in 3 optimizer steps"),
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
    missing = {"other layers": "layers 1, 3", "some layers": "layer 3"}[held]
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
    monkeypatch.setattr("autolayer.freeze.checksum", lambda tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError), train_only(tiny_model, 1, quiet=True):
        pass
    assert state(tiny_model) == before


def test_models_are_not_kept_alive():
    from autolayer.freeze import _ACTIVE

    model = build_model("llama", num_layers=2)
    with train_only(model, 1, quiet=True):
        steps(model, 1)
    del model
    gc.collect()
    assert not len(_ACTIVE)


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


def test_fp32_keep_and_no_op():
    model = build_model("qwen3_moe", dtype=torch.bfloat16)
    before = bits(model)
    with train_only(model, 1, quiet=True), fp32_layers(model, (1,), keep=True):
        steps(model)
    assert changed(model, before)
    assert changed(model, before) <= set(layer_parameters(model, (1,)))
    single = build_model("qwen3")
    with fp32_layers(single, "full"):
        assert "forward" not in find_layers(single)[0].__dict__
    with pytest.raises(KeyError), fp32_layers(model, (0, 1)):
        raise KeyError
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


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
