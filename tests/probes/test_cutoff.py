"""The probe `cutoff` against patched passes of single sequences, and on models whose cutoff is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model
from workbench_helpers import PLAN, make_bench, make_context, make_task, plain_log_probs, sample_folds

from autolayer.core.probe_plan import ANSWER_TOKENS, CUTOFF_DEPTHS
from autolayer.models.layers import find_layers
from autolayer.probes import PROBES, exchange
from autolayer.probes.base import Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.cutoff import FLAT, bisect, ratio
from autolayer.probes.exchange import Excerpt, Exchange, make_pairs
from autolayer.rollouts.rollouts import Rollouts, Turn


def _score(context: ProbeContext) -> Scores | None:
    return PROBES["cutoff"].score(context)


def _context(model: Any, folder: Path, **options: Any) -> ProbeContext:
    bench = make_bench(model, folder, **options)
    return make_context(bench, tuple(range(len(bench.layers))), replace(PLAN, cutoff_pairs=9))


def _reading(num_layers: int = 4) -> Any:
    """A random model whose completions depend on the prompt; with the usual weights they hardly do."""
    return build_model("qwen3", num_layers=num_layers, initializer_range=0.3)


def _deaf_from(model: Any, block: int) -> Any:
    """Makes positions read no others from a block on, by taking away what attention adds."""
    for each in list(find_layers(model))[block:]:
        attention: Any = each.self_attn
        attention.register_forward_hook(lambda module, arguments, output: (output[0] * 0, *output[1:]))
    return model


def _patched(model: Any, own: list[int], donor: list[int], answer: list[int], block: int) -> float:
    """Log-probability of an answer after `own`, with the donor's states entering a block: one plain pass each."""
    length = min(len(own), len(donor)) - 2
    states = model(input_ids=torch.tensor([donor]), output_hidden_states=True).hidden_states[block]

    def patch(module: torch.nn.Module, args: Any) -> Any:
        state = args[0].clone()
        state[0, len(own) - 1 - length : len(own) - 1] = states[0, len(donor) - 1 - length : len(donor) - 1]
        return (state, *args[1:])

    handle = find_layers(model)[block].register_forward_pre_hook(patch)
    found = float(plain_log_probs(model, own, answer).sum())
    handle.remove()
    return found


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3"])
def test_the_margin_is_that_of_passes_patched_by_hand(architecture: str, tmp_path: Path) -> None:
    model = build_model(architecture)
    bench = make_bench(model, tmp_path)
    pairs = [
        (Excerpt(context=[5, 6, 7, 8, 9], answer=[3, 4]), Excerpt(context=[5, 16, 17, 18, 9], answer=[13, 14, 15])),
        (Excerpt(context=[5, 6, 7, 20, 8, 9], answer=[3]), Excerpt(context=[15, 16, 17, 19], answer=[13, 14])),
    ]
    exchanged = Exchange(bench, pairs)
    for block in range(4):
        expected = []
        for one, other in pairs:
            own, donor = one.context, other.context
            at = [
                _patched(model, *order, each.answer, block)
                for order in ((own, donor), (donor, own))
                for each in (one, other)
            ]
            expected.append(at[0] - at[1] - at[2] + at[3])
        assert exchanged.margins(block).tolist() == pytest.approx(expected, abs=1e-4)
    # The first pair differs neither in its first nor in its last position: at block 0 each has become the other.
    assert float(exchanged.margins(0)[0]) == pytest.approx(-float(exchanged.margins(None)[0]), abs=1e-4)


def test_passes_start_at_kept_states_and_are_charged_from_there(tmp_path: Path) -> None:
    context = _context(_reading(6), tmp_path)
    bench, pairs = context.bench, make_pairs(context.folds[0].rollouts, 3, seed=0)
    assert bench.scorer.starts_midway
    every, some, none = (Exchange(bench, pairs) for _ in range(3))
    some.every = 4
    every.margins(None)
    some.margins(None)
    found, costs = [], []
    for exchanged in (every, some, none):
        before = bench.spent
        found.append(exchanged.margins(5))
        costs.append((bench.spent - before).layer_tokens)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], found[2], rtol=1e-4, atol=1e-4)
    assert costs[0] < costs[1] < costs[2] and costs[2] - costs[1] == pytest.approx(4 * (costs[1] - costs[0]))


def test_small_micro_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = _context(_reading(), tmp_path)
    whole = _score(context)
    monkeypatch.setattr(context.bench.micro_batching, "sequences", lambda width: 3)
    parts = _score(context)
    assert whole is not None and parts is not None
    assert parts.scores_L == pytest.approx(whole.scores_L, abs=1e-5)


@pytest.mark.parametrize("block", [1, 3, 5])
def test_a_layer_whose_writing_nobody_reads_scores_zero(block: int, tmp_path: Path) -> None:
    context = _context(_deaf_from(_reading(6), block), tmp_path)
    exchanged = Exchange(context.bench, make_pairs(context.folds[0].rollouts, 3, seed=0))
    for each in range(6):
        assert torch.equal(exchanged.margins(each), exchanged.margins(None)) == (each >= block)
    found = _score(context)
    assert found is not None and found.errors_L is not None
    assert found.scores_L[0] == 1 and found.scores_L[5] == 0 and (abs(found.scores_L[block:]) <= FLAT).all()


def test_where_completions_do_not_depend_on_the_prompt_it_is_left_out_and_says_so(tmp_path: Path) -> None:
    context = _context(_deaf_from(build_model("qwen3"), 0), tmp_path / "deaf")
    assert _score(context) is None
    assert context.notes == ["cutoff left out: an exchange of prompts does not move the base's completions"]
    same = make_task(prompts={name: [f"{i}="] for i, name in enumerate(("train", "probe", "select", "eval"))})
    bench = make_bench(build_model("qwen3"), tmp_path / "one", same)
    context = make_context(bench, (0, 1), replace(PLAN, cutoff_pairs=9), num_folds=1, prompts=1)
    assert _score(context) is None and "0 pairs" in context.notes[0]


def test_blocks_that_take_several_states_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gemma 3n's, whose hidden state has the streams in front."""
    context = _context(_reading(), tmp_path)
    taken_from = exchange._taken_from

    @contextmanager
    def from_streams(block: Any, *part: Any) -> Iterator[None]:
        streams = block.register_forward_pre_hook(lambda module, args: (args[0][None], *args[1:]))
        try:
            with taken_from(block, *part):
                yield
        finally:
            streams.remove()

    monkeypatch.setattr(exchange, "_taken_from", from_streams)
    assert _score(context) is None
    reason = "the blocks of this model take more than one hidden state for each position"
    assert context.notes == [f"cutoff left out: {reason}"]


def test_candidates_between_measured_blocks_are_interpolated_and_the_curve_is_bisected_where_it_falls() -> None:
    true_L, asked = np.where(np.arange(30) < 21, 1.0, 0.0), []

    def measure(block: int) -> tuple[float, float]:
        asked.append(block)
        return float(true_L[block]), 0.1

    found = bisect(measure, 30)
    assert len(asked) == len(set(asked)) < CUTOFF_DEPTHS
    assert {20, 21} <= set(found) and np.interp(np.arange(30), sorted(found), [found[b][0] for b in sorted(found)]) == (
        pytest.approx(true_L)
    )
    asked.clear()
    assert set(bisect(lambda block: (asked.append(block), (1.0, 0.0))[1], 30)) == {0, 29} and asked == [29]
    assert set(bisect(measure, 2)) == {0, 1} and 0 in bisect(measure, 1)


def test_the_error_of_a_ratio_is_its_spread_over_samples() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        all_N = generator.gamma(4, 1, 16)
        found.append(ratio(0.5 * all_N + generator.normal(0, 0.4, 16), all_N))
    shares, errors = np.array(found).T
    assert shares.mean() == pytest.approx(0.5, abs=0.01) and errors.mean() == pytest.approx(shares.std(), rel=0.1)


def test_pairs_have_contexts_of_like_length_and_differing_answers(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    rollouts = Rollouts.joined(sample_folds(bench), 4)
    pairs = make_pairs(rollouts, 9, seed=0)
    contexts = [each.context for pair in pairs for each in pair]
    assert 6 <= len(pairs) <= 9 and len({tuple(context) for context in contexts}) == 2 * len(pairs)
    best = {tuple(rollouts.prompt_ids[i]): max(rollouts.rewards[i : i + 4]) for i in range(0, len(rollouts.rewards), 4)}
    for pair in pairs:
        assert pair[0].answer != pair[1].answer
        for each in pair:
            row = next(i for i, ids in enumerate(rollouts.prompt_ids) if ids == each.context
                       and rollouts.completion_ids[i] == each.answer)  # fmt: skip
            assert rollouts.rewards[row] == best[tuple(each.context)]


def test_long_completions_and_turns_give_a_piece_that_everything_before_it_predicts() -> None:
    prompt, ids = [2, 3], list(range(100, 200))
    turns = (Turn(0, 60, 0.0, ""), Turn(70, 75, 1.0, ""))
    rollouts = Rollouts.of_one_turn([prompt], [ids], [""], [1.0], [True], 1)
    rollouts = replace(rollouts, turns=[turns])
    seen = set()
    for seed in range(60):
        found = _only(rollouts, seed)
        start = found.answer[0] - 100
        assert found.context == prompt + ids[:start] and found.answer == ids[start : start + len(found.answer)]
        if start == 70:
            assert len(found.answer) == 5
        else:
            assert len(found.answer) == ANSWER_TOKENS and start + ANSWER_TOKENS <= 60
        seen.add(start)
    assert 70 in seen and len(seen) > 10


def _only(rollouts: Rollouts, seed: int) -> Excerpt:
    other = replace(rollouts, prompt_ids=[[9]], completion_ids=[[1] * 100])
    ((one, two),) = make_pairs(Rollouts.joined([rollouts, other], 1), 1, seed)
    return one if one.context[:2] == [2, 3] or one.answer[0] >= 100 else two
