"""The trainer against losses written by hand, against stock TRL, and how far its backward pass walks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from stock_trl import stock_trl
from tiny_models import VOCABULARY, build, build_model, build_tokenizer
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, GPT2Config, OPTConfig, PreTrainedModel
from workbench_helpers import (
    Untouched,
    assert_equal,
    differing,
    make_bench,
    mean_id,
    plain_log_probs,
    spied_gradients,
    weights_of,
)

from autolayer.core.arms import Arm
from autolayer.core.layer_set import Layers
from autolayer.models.layers import find_layers, layer_parameters
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.prompts import encode_prompts
from autolayer.rollouts.rollouts import request_seed
from autolayer.tasks.base import SPLITS, Task
from autolayer.training import out_of_memory
from autolayer.training.grpo_trainer import LayerGRPOTrainer, largest_divisor
from autolayer.training.train_arm import train_arm, train_rows

LR = 1e-3


def _often_ending(**changes: Any) -> Any:
    """A model with so many end tokens that completions differ in length."""
    model = build_model("qwen3", **changes)
    model.generation_config.eos_token_id = [1, *range(20, 50)]
    return model


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("micro_batch_tokens", [32_768, 60], ids=["one batch", "micro-batches"])
def test_the_gradient_of_a_step_is_that_of_the_published_loss(
    algorithm: str, micro_batch_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "TOKENS", micro_batch_tokens)
    seen = spied_gradients(monkeypatch)
    model, twin = _often_ending(), _often_ending()
    bench = make_bench(model, tmp_path, algorithm=algorithm, prompts_per_step=3, temperature=0.8)
    arm = Arm(layers=(1, 2), learning_rate=LR, seed=5)
    train_arm(bench, arm, 1)

    # By hand: sequence by sequence, without padding, log_softmax and autograd.
    engine = TransformersEngine(twin, build_tokenizer(), max_new_tokens=bench.task.max_new_tokens, temperature=0.8)
    rows = train_rows(bench, 5, 0, 1)
    prompts = [ids for ids in encode_prompts(build_tokenizer(), rows, {}) for _ in range(4)]
    completions = engine.generate(prompts, [request_seed(5, "train", 0, i) for i in range(12)])
    assert len(set(map(len, completions))) > 1  # otherwise the two normalisations could not be told apart
    rewards = torch.tensor(mean_id([], list(completions))).view(3, 4)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if algorithm == "grpo":
        advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
    trained = layer_parameters(twin.requires_grad_(False), (1, 2))
    for parameter in trained.values():
        parameter.requires_grad_(True)
    loss = torch.zeros(())
    for prompt, completion, advantage in zip(prompts, completions, advantages.flatten(), strict=True):
        length = len(completion) if algorithm == "grpo" else bench.task.max_new_tokens
        loss = loss - advantage * plain_log_probs(twin, prompt, completion, 0.8).sum() / length / 12
    loss.backward()
    assert seen.keys() == trained.keys()
    scale = max(float(p.grad.abs().max()) for p in trained.values() if p.grad is not None)
    for name, parameter in trained.items():
        assert parameter.grad is not None
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "layers", "beta"),
    [("grpo", (2,), 0.5), ("dr_grpo", (0, 3), 0.5), ("grpo", "full", 0.5), ("grpo", (0,), 0.0)],
)
def test_training_equals_stock_trl_whose_kl_needs_a_second_model(
    algorithm: str, layers: Layers, beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("qwen3", tmp_path / "model", num_layers=4)
    model, other, free = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for _ in range(3))
    bench = make_bench(model.eval(), tmp_path / "run", algorithm=algorithm, beta=beta)
    arm = Arm(layers=layers, learning_rate=3 * LR, seed=1)
    stock_trl(other, bench, arm, 4, tmp_path / "scratch")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a second model is made")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "__init__", refuse)
        patch.setattr(PreTrainedModel, "from_pretrained", refuse)
        trained = bench.arm_weights(train_arm(bench, arm, 4).arm)
    expected = {name: p.detach() for name, p in layer_parameters(other, layers).items()}
    assert trained is not None and trained.keys() == expected.keys()
    for name, tensor in trained.items():
        # Stock TRL scores whole sequences, and Adam's first steps enlarge rounding.
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)
    if not beta:
        return
    # The KL term is large enough here for its absence to show.
    loose = make_bench(free.eval(), tmp_path / "loose", algorithm=algorithm)
    without = loose.arm_weights(train_arm(loose, arm, 4).arm)
    assert without is not None
    assert max(float((without[name] - tensor).abs().max()) for name, tensor in expected.items()) > 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("layers", [(0,), (2,), (3,), (1, 3)])
def test_the_backward_pass_stops_at_the_lowest_trained_layer(
    layers: tuple[int, ...], beta: float, tmp_path: Path
) -> None:
    model = build_model("qwen3")
    bench = make_bench(model, tmp_path, beta=beta)
    reached, forwards = [0] * 4, [0] * 4

    def watch(index: int) -> Any:
        def hook(module: Any, arguments: Any, output: torch.Tensor) -> None:
            if torch.is_grad_enabled():
                forwards[index] += 1
                if output.requires_grad:
                    output.register_hook(lambda gradient: reached.__setitem__(index, reached[index] + 1))

        return hook

    handles = [block.register_forward_hook(watch(i)) for i, block in enumerate(find_layers(model))]
    train_arm(bench, Arm(layers=layers, learning_rate=LR, seed=0), 2)
    for handle in handles:
        handle.remove()
    # Below, a reference has run the blocks for both.
    assert forwards == [0 if beta and index < min(layers) else 2 for index in range(4)]
    assert reached == [0 if index < min(layers) else 2 for index in range(4)]


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "gemma3"])
def test_training_changes_the_trained_layer_alone_and_leaves_the_model_untouched(
    architecture: str, tmp_path: Path
) -> None:
    model = build_model(architecture)
    model.generation_config.eos_token_id = [5, 6]
    bench = make_bench(model, tmp_path)
    before = Untouched(model)
    trained = train_arm(bench, Arm(layers=(1,), learning_rate=LR, seed=0), 2)
    before.check()
    weights = bench.arm_weights(trained.arm)
    assert weights is not None and weights.keys() == layer_parameters(model, (1,)).keys()
    changed = differing(weights, before.weights)
    assert changed and all(".layers.1." in name for name in changed)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_of_accelerate_changes_nothing(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `accelerate config`, and an Accelerator that the caller's program made before, do not reach the trainer."""

    def trained(folder: Path) -> dict[str, torch.Tensor]:
        bench = make_bench(build_model("qwen3"), folder)
        weights = bench.arm_weights(train_arm(bench, Arm(layers=(1,), learning_rate=LR, seed=0), 2).arm)
        assert weights is not None
        return weights

    plain = trained(tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    assert_equal(trained(tmp_path / "configured"), plain)
    try:
        AcceleratorState._reset_state(reset_partial_state=True)  # the stock trainer of another test leaves one
        theirs = Accelerator(mixed_precision=precision, cpu=True)
        assert_equal(trained(tmp_path / "in a pipeline"), plain)
        assert theirs.mixed_precision == theirs.state.mixed_precision == precision
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_every_step_gets_the_prompts_and_seeds_that_belong_to_it(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path, prompts_per_step=3)
    asked: list[tuple[list[list[int]], list[int]]] = []
    generate = bench.engine.generate

    def spy(prompt_ids: list[list[int]], seeds: Any) -> Any:
        asked.append((prompt_ids, list(seeds)))
        return generate(prompt_ids, seeds)

    bench.engine.generate = spy  # pyright: ignore
    arm = train_arm(bench, Arm(layers=(3,), learning_rate=LR, seed=7), 2).arm
    train_arm(bench, arm, 4)
    rows = train_rows(bench, 7, 0, 4)
    prompts = [ids for ids in encode_prompts(bench.tokenizer, rows, {}) for _ in range(4)]
    assert [ids for ids, _ in asked] == [prompts[i : i + 12] for i in range(0, 48, 12)]
    assert [seeds for _, seeds in asked] == [[request_seed(7, "train", s, i) for i in range(12)] for s in range(4)]


def test_an_epoch_takes_every_prompt_once_in_another_order_than_the_next(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=1), tmp_path)
    texts = [row["prompt"] for row in train_rows(bench, 0, 0, 12)]
    everything = sorted(row["prompt"] for row in bench.task.splits["train"])
    assert sorted(texts[:24]) == everything == sorted(texts[24:]) and texts[:24] != texts[24:]
    assert train_rows(bench, 0, 5, 4) == train_rows(bench, 0, 0, 12)[20:36]
    assert train_rows(bench, 1, 0, 12) != train_rows(bench, 0, 0, 12)


def test_the_checkpoint_holds_what_the_optimizer_had(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", dtype=torch.bfloat16), tmp_path)
    arm = train_arm(bench, Arm(layers=(2,), learning_rate=LR, seed=0), 2).arm
    tensors = bench.checkpoints.read(arm)
    names = layer_parameters(bench.model, (2,))
    assert set(tensors) == {f"{kind}:{name}" for kind in ("master", "step", "exp_avg", "exp_avg_sq") for name in names}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    weights = bench.arm_weights(arm)
    assert weights is not None
    assert_equal(weights, {name: tensors[f"master:{name}"].bfloat16() for name in names})
    assert differing(weights, weights_of(bench.model))


def test_largest_divisor() -> None:
    for number in range(1, 60):
        for at_most in range(70):
            divisor = largest_divisor(number, at_most)
            assert number % divisor == 0 and divisor <= max(1, at_most)
            assert not any(number % d == 0 for d in range(divisor + 1, min(number, at_most) + 1))


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3n"])
def test_training_scores_completions_at_the_positions_and_without_the_dropout_that_made_them(
    family: str, tmp_path: Path
) -> None:
    """Learned positions, dropout kept as a number, and no gradient at the pad token's embedding, which is 0.

    Prompts of unequal length are padded on the left by TRL.
    """
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    if family == "gpt2":
        config: Any = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **small)
    elif family == "gemma3n":
        config = Gemma3nTextConfig(
            hidden_size=32, intermediate_size=[64, 64], num_hidden_layers=2, num_attention_heads=4, head_dim=8,
            num_key_value_heads=2, max_position_embeddings=64, hidden_size_per_layer_input=8, laurel_rank=4,
            vocab_size_per_layer_input=VOCABULARY, altup_num_inputs=2, activation_sparsity_pattern=[0.0, 0.0],
            num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"], initializer_range=0.1, **small,
        )  # fmt: skip
    else:
        config = OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            word_embed_proj_dim=32, dropout=0.5, **small,
        )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    splits = {
        split: [{"prompt": f"{at}{i}" + "7" * (3 * (i % 5))} for i in range(12)] for at, split in enumerate(SPLITS)
    }
    task = Task(name="uneven", splits=splits, reward=mean_id, max_new_tokens=4)
    bench = make_bench(model, tmp_path, task)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = LayerGRPOTrainer._get_per_token_logps_and_entropies

    def spy(self: Any, policy: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int, **kwargs: Any):
        found = original(self, policy, input_ids, attention_mask, keep, **kwargs)
        for ids, mask, values in zip(input_ids, attention_mask, found[0].detach(), strict=True):
            real = ids[mask.bool()]
            count = int(mask[-keep:].sum())
            with torch.no_grad():
                logits = model(input_ids=real[None]).logits[0, -count - 1 : -1].log_softmax(-1)
            seen.append((values[:count], logits.gather(1, real[-count:, None])[:, 0]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerGRPOTrainer, "_get_per_token_logps_and_entropies", spy)
        train_arm(bench, Arm(layers=(1,), learning_rate=1e-3, seed=0), 1)
    assert seen
    for found, expected in seen:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
