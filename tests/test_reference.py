"""The KL reference shares the layers below with the policy. Its values: tests/test_trainer.py, against TRL's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_model
from workbench_helpers import Untouched, assert_equal, make_bench

from autolayer import checkpoints, passes
from autolayer.arms import Arm, Layers
from autolayer.layers import find_layers
from autolayer.workbench import Workbench

LR = 3e-3


def counted(bench: Workbench, layers: Layers) -> tuple[dict[str, Any], list[int], float]:
    """The optimizer's state after two steps, passes through every block's attention, and the bill in layer-tokens."""
    calls: Counter[int] = Counter()
    for index, block in enumerate(find_layers(bench.model)):
        attention: Any = block.self_attn
        attention.register_forward_hook(lambda *_, index=index: calls.update([index]))
    before = Untouched(bench.model)
    segment = bench.train(Arm(layers=layers, learning_rate=LR, seed=0), 2)
    before.check()
    state, _ = checkpoints.read(bench.folder.path, segment.arm)
    return state, [calls[index] for index in range(len(bench.layers))], segment.cost.layer_tokens


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen3_moe"])
@pytest.mark.parametrize("layers", [(2,), (1, 3)])
def test_layers_below_run_once_for_both_and_nothing_else_changes(
    architecture: str, layers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "TOKENS", 60)  # several micro-batches
    shared, apart, plain = (
        make_bench(build_model(architecture), tmp_path / name, beta=beta)
        for name, beta in (("shared", 0.1), ("apart", 0.1), ("plain", 0.0))
    )
    apart.enters = False
    state, calls, cost = counted(shared, layers)
    other_state, other_calls, other_cost = counted(apart, layers)
    _, plain_calls, _ = counted(plain, layers)
    assert_equal(state, other_state)
    micro_batches = other_calls[0] - plain_calls[0]
    tried = [calls[i] - plain_calls[i] - (0 if i < min(layers) else micro_batches) for i in range(4)]
    assert micro_batches > 4 and other_calls == [count + micro_batches for count in plain_calls]
    assert max(tried) <= 4, "but for the passes that try whether one may begin in the middle"
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
    assert bench.reference((2,)).lowest == 0
    _, calls, _ = counted(bench, (2,))
    assert len(set(calls)) == 1


def test_all_parameters_share_nothing(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path, beta=0.1)
    assert bench.reference("full").lowest == 0 and bench.reference((2, 3)).lowest == 2
