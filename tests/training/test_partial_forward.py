"""Passes that begin in the middle of a model say what whole ones do, for less."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, build_model
from transformers import AutoConfig, AutoModelForCausalLM
from workbench_helpers import PLAN, Untouched, make_bench, make_context, make_task, mean_id

from autolayer.core.budget import UnitCosts
from autolayer.core.costs import Cost
from autolayer.models.fp32 import fp32_layers
from autolayer.models.layers import find_layers
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring
from autolayer.training.partial_forward import PartialForward, can_start_midway
from autolayer.training.prefix_trees import pass_size

TEMPERATURE = 0.7


def make_parts() -> list[ScoreBatch]:
    """Three micro-batches of sequences of different length."""
    random = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, 90, (5, 9), generator=random)
    lengths = torch.tensor([9, 7, 4, 9, 5])[:, None]
    mask = (torch.arange(9) < lengths).long()
    own = mask * (torch.arange(9) >= 3)
    batch = ScoreBatch(input_ids=input_ids * mask, attention_mask=mask, completion_mask=own)
    return [part for _, part in batch.split(2)]


@contextmanager
def stepped(model: Any, layer: int) -> Iterator[None]:
    """One block changed for a while."""
    weights = [p for p in find_layers(model)[layer].parameters() if p.ndim > 1]
    before = [p.detach().clone() for p in weights]
    try:
        for p in weights:
            p.add_(0.05 * p.sign())
        yield
    finally:
        for p, old in zip(weights, before, strict=True):
            p.copy_(old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mixtral"])
def test_from_the_middle_is_the_same_as_whole(architecture: str, dtype: torch.dtype) -> None:
    model, parts = build_model(architecture, dtype=dtype), make_parts()
    untouched = Untouched(model)
    with scoring(model, TEMPERATURE), torch.no_grad():
        assert can_start_midway(model)
        boundary = PartialForward(model, parts)
        for layer in (0, 1, 3, 2):  # the last one is further down: from the start again
            assert boundary.move_to(layer) == {0: 0, 1: 1, 3: 2, 2: 2}[layer]
            assert boundary.move_to(layer) == 0
            with fp32_layers(model, (layer,)), stepped(model, layer):
                expected = [log_probs(model, part) for part in parts]
                found = list(boundary.log_probs())
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
            moved = torch.cat(found) - torch.cat([log_probs(model, part) for part in parts])
            assert moved.abs().max() > 1e-3, "the step was seen"
    untouched.check()


@contextmanager
def counting(model: Any) -> Iterator[Counter[int]]:
    """Counts how often each block's attention really runs."""
    ran: Counter[int] = Counter()
    blocks: Any = find_layers(model)
    handles = [
        block.self_attn.register_forward_pre_hook(lambda *_, layer=layer: ran.update([layer]))
        for layer, block in enumerate(blocks)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def test_a_walk_up_the_stack_runs_each_block_as_often_as_the_plan_says(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=5)
    bench = make_bench(model, tmp_path, make_task(mean_id))
    layers, tries = (1, 2, 4), 3
    with scoring(model, TEMPERATURE), torch.no_grad():
        batch = make_parts()[0]
        boundary, before = bench.scorer.partial_forward(batch), bench.spent
        with counting(model) as ran:
            for layer in layers:
                bench.scorer.move_to(boundary, layer)
                for _ in range(tries):
                    bench.scorer.log_probs(boundary)
    assert ran == {0: 1, 1: 1 + 3, 2: 1 + 6, 3: 1 + 6, 4: 9}
    size = pass_size(model, batch.input_ids, batch.attention_mask, batch.labels)
    units = UnitCosts(costs=bench.costs, group_size=1, prompt_tokens=1, completion_tokens=1, few_pass=size)
    spent, planned = bench.spent - before, units.walk(layers, tries)
    assert spent.layer_tokens == pytest.approx(planned.layer_tokens)
    assert spent.layer_tokens == pytest.approx(
        size.tokens * sum(ran.values()) + size.scored * 9 * bench.costs.head_ratio
    )


def test_probes_walk_up_instead_of_running_every_pass_whole(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=6)
    bench = make_bench(model, tmp_path, make_task(mean_id))
    context = make_context(bench, tuple(range(6)), plan=PLAN)
    context.gradients  # noqa: B018  (the shared backward pass, apart)
    before = Untouched(model)
    with counting(model) as ran:
        for layer in context.layers:
            context.responses[layer]
    assert ran[0] < 0.4 * ran[5] and all(ran[low] < ran[low + 1] for low in range(5))
    before.check()


def test_a_model_whose_blocks_exchange_more_is_run_whole(tmp_path: Path) -> None:
    model = build_model("llama", num_layers=4)
    blocks: Any = find_layers(model)
    forwards = blocks[0].forward, blocks[3].forward

    def first(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        blocks[0].seen = hidden
        return forwards[0](hidden, *args, **kwargs)

    def last(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return forwards[1](hidden + blocks[0].seen, *args, **kwargs)

    blocks[0].forward, blocks[3].forward = first, last
    bench = make_bench(model, tmp_path, make_task(mean_id))
    with scoring(model, TEMPERATURE), torch.no_grad():
        assert not can_start_midway(model)
        boundary, before = bench.scorer.partial_forward(make_parts()[0]), bench.spent
        bench.scorer.move_to(boundary, 2)
        assert boundary.layer == 0 and bench.spent == before + Cost(seconds=(bench.spent - before).seconds)
        assert torch.equal(bench.scorer.log_probs(boundary), log_probs(model, make_parts()[0]))


def test_blocks_that_return_tuples_get_whole_passes() -> None:
    config = AutoConfig.for_model("bloom", vocab_size=100, hidden_size=32, n_layer=4, n_head=4)
    model = AutoModelForCausalLM.from_config(config)
    with scoring(model, 1.0), torch.no_grad():
        assert not can_start_midway(model)
