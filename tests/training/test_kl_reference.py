"""The KL reference shares the layers below with the policy. Its values are checked in test_grpo_trainer.py."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_model, build_tokenizer
from workbench_helpers import Untouched, assert_equal, make_bench

from autolayer.core.arms import Arm
from autolayer.core.layer_set import Layers
from autolayer.models.layers import find_layers
from autolayer.training import out_of_memory
from autolayer.training.grpo_trainer import kl_reference
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

LR = 3e-3


def counted(bench: Workbench, layers: Layers) -> tuple[dict[str, Any], list[int], float]:
    """The optimizer's state after two steps, passes through every block's attention, and the bill in layer-tokens."""
    calls: Counter[int] = Counter()
    assert bench.scorer.starts_midway in (True, False)  # tried before anything is counted
    for index, block in enumerate(find_layers(bench.model)):
        attention: Any = block.self_attn
        attention.register_forward_hook(lambda *_, index=index: calls.update([index]))
    before = Untouched(bench.model)
    trained = train_arm(bench, Arm(layers=layers, learning_rate=LR, seed=0), 2)
    before.check()
    state = bench.checkpoints.read(trained.arm)
    return state, [calls[index] for index in range(len(bench.layers))], trained.cost.layer_tokens


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "layers"), [("qwen3", (2,)), ("llama", (1, 3)), ("qwen3_moe", (1, 3))])
def test_layers_below_run_once_for_both_and_nothing_else_changes(
    architecture: str, layers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "TOKENS", 60)  # several micro-batches
    shared, apart, plain = (
        make_bench(build_model(architecture), tmp_path / name, beta=beta)
        for name, beta in (("shared", 0.1), ("apart", 0.1), ("plain", 0.0))
    )
    apart.scorer.starts_midway = False
    state, calls, cost = counted(shared, layers)
    other_state, other_calls, other_cost = counted(apart, layers)
    _, plain_calls, _ = counted(plain, layers)
    assert_equal(state, other_state)
    micro_batches = other_calls[0] - plain_calls[0]
    more = [calls[i] - plain_calls[i] for i in range(4)]
    assert micro_batches > 4 and other_calls == [count + micro_batches for count in plain_calls]
    assert more[: min(layers)] == [0] * min(layers)
    # Halves of sequences that start midway fit into fewer micro-batches.
    assert all(0 < count <= micro_batches for count in more[min(layers) :])
    tokens = (other_cost - cost) / min(layers)
    assert tokens == pytest.approx(round(tokens)) and tokens > 2 * 16 * 4, "the bill says so"


def test_a_model_whose_blocks_exchange_more_runs_whole(tmp_path: Path) -> None:
    model = build_model("llama", num_layers=4)
    blocks: Any = find_layers(model)
    forwards = blocks[0].forward, blocks[3].forward

    def first(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        blocks[0].seen = hidden
        return forwards[0](hidden, *args, **kwargs)

    def last(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return forwards[1](hidden + blocks[0].seen, *args, **kwargs)

    blocks[0].forward, blocks[3].forward = first, last
    bench = make_bench(model, tmp_path / "bench", beta=0.1)
    reference = kl_reference(bench, (2,))
    assert reference is not None and reference.lowest == 0
    _, calls, _ = counted(bench, (2,))
    assert len(set(calls)) == 1


def test_all_parameters_share_nothing(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path, beta=0.1)
    full, some = kl_reference(bench, "full"), kl_reference(bench, (2, 3))
    assert full and some and (full.lowest, some.lowest) == (0, 2)
    assert len(some.base) == len(bench.parameters((2, 3)))


def test_blocks_that_read_what_lower_ones_have_left_run_whole(tmp_path: Path) -> None:
    """Gemma's upper blocks attend to keys of lower ones: a pass can begin in the middle, but not near the top."""
    settings: Any = importlib.import_module("transformers.models.gemma4.configuration_gemma4")
    modeling: Any = importlib.import_module("transformers.models.gemma4.modeling_gemma4")
    size = max(build_tokenizer().get_vocab().values()) + 8
    config = settings.Gemma4TextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, global_head_dim=16, num_kv_shared_layers=2, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=size, layer_types=["sliding_attention", "full_attention"] * 4, sliding_window=64,
        max_position_embeddings=256,
    )  # fmt: skip
    bench = make_bench(modeling.Gemma4ForCausalLM(config).eval(), tmp_path, beta=0.1)
    assert not bench.scorer.starts_midway
    assert train_arm(bench, Arm(layers=(7,), learning_rate=LR, seed=0), 1).arm.step == 1
