"""The probe `self_imitation` against a plain loop over whole sequences, and what it imitates."""

import copy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model
from workbench_helpers import PLAN, make_bench, make_context, make_task

from autolayer.core.budget import UnitCosts
from autolayer.core.config import Config
from autolayer.core.probe_plan import IMITATION_STEPS, probe_cost
from autolayer.models.layers import layer_parameters
from autolayer.probes.self_imitation import Different, SelfImitation, Trial
from autolayer.probes.shared_batch import Fold
from autolayer.training.logprobs import scoring

IMITATION = replace(PLAN, imitation_layers=3, imitation_prompts=6)


def _log_prob(model: Any, fold: Fold, row: int) -> torch.Tensor:
    prompt, completion = fold.rollouts.prompt_ids[row], fold.rollouts.completion_ids[row]
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum()


@pytest.mark.parametrize("family", ["qwen3", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_the_score_is_what_a_plain_loop_over_whole_sequences_gives(family: str, tmp_path: Path) -> None:
    model = build_model(family, num_layers=3, initializer_range=0.3)
    context = make_context(make_bench(model, tmp_path), (0, 1, 2), IMITATION)
    found = SelfImitation().score(context)
    assert found is not None and found.errors_L is not None
    rate = statistics.median(context.distance_step(layer) for layer in context.responses) / IMITATION_STEPS
    judged, *others = context.folds
    for layer in (0, 2):
        twin = copy.deepcopy(model).requires_grad_(False)
        parameters = list(layer_parameters(twin, (layer,)).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for _ in range(IMITATION_STEPS):
            optimizer.zero_grad()
            loss = torch.zeros(())
            for fold in others:  # three prompts of each, the two completions of each that have most advantage
                for start in range(0, 12, 4):
                    rows = sorted(range(start, start + 4), key=lambda row: -float(fold.advantages_B[row]))[:2]
                    kept = [row for row in rows if fold.advantages_B[row] > 0]
                    loss -= sum(_log_prob(twin, fold, row) * fold.advantages_B[row] for row in kept)
            loss.backward()
            optimizer.step()
        gains = []
        with torch.no_grad():
            for start in range(0, len(judged.rollouts.rewards), 4):
                rows = range(start, start + 4)
                ratios = torch.stack([_log_prob(twin, judged, row) - _log_prob(model, judged, row) for row in rows])
                rewards = torch.tensor([judged.rollouts.rewards[row] for row in rows])
                gains.append(float(ratios.softmax(0) @ rewards - rewards.mean()))
        index = context.layers.index(layer)
        assert found.scores_L[index] == pytest.approx(np.mean(gains), rel=0.02, abs=1e-4)
        assert found.errors_L[index] == pytest.approx(np.std(gains, ddof=1) / len(gains) ** 0.5, rel=0.02, abs=1e-4)
    assert found.scores_L.max() > 0  # what succeeds on some prompts succeeds on others


def test_equal_completions_count_once_with_their_number_and_prompts_without_a_difference_not_at_all(
    tmp_path: Path,
) -> None:
    fold = make_context(make_bench(build_model("qwen3"), tmp_path), (0,), IMITATION).folds[0]
    rewards = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0] + fold.rollouts.rewards[8:]
    completions = [[5, 2], [6, 2], [5, 2], [7, 2], *fold.rollouts.completion_ids[4:]]
    rollouts = replace(fold.rollouts, rewards=rewards, completion_ids=completions)
    advantages_B = fold.advantages_B.clone()
    advantages_B[:8] = torch.tensor([2 / 3, -2 / 3, 2 / 3, -2 / 3, 0, 0, 0, 0])
    different = Different(replace(fold, rollouts=rollouts, advantages_B=advantages_B), num_prompts=2)
    assert different.num_prompts == 2 and different.counts_N[:3].tolist() == [2, 1, 1]
    assert different.prompts_N.tolist() == [0, 0, 0, 1, 1, 1, 1]  # the second prompt of the fold tells nothing
    batch, weights_N = different.best()
    assert weights_N[0] == pytest.approx(4 / 3) and batch.input_ids[0].tolist() == fold.batch.input_ids[0].tolist()
    moved = torch.zeros(7, dtype=torch.float64)
    moved[0] = np.log(3.0)  # the right answer three times as likely: 6 of 8 instead of 2 of 4
    assert different.gains(moved).tolist() == pytest.approx([6 / 8 - 1 / 2, 0])
    moved[0] = float("nan")  # a layer that breaks
    assert np.isfinite(different.gains(moved)).all()


def test_a_layer_that_makes_no_step_gains_nothing_in_bf16(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=3, dtype=torch.bfloat16)
    context = make_context(make_bench(model, tmp_path, temperature=0.7), (0, 1, 2), IMITATION)
    with scoring(model, 0.7):
        assert not Trial(context).gains(1, rate=0.0).any()  # judged in float32 before as well as after
        assert Trial(context).gains(1, rate=1e-2).any()


def test_its_bill_is_within_the_plan(tmp_path: Path) -> None:
    model, layers = build_model("qwen3", num_layers=8, initializer_range=0.3), tuple(range(8))
    bench = make_bench(model, tmp_path)
    context = make_context(bench, layers, replace(IMITATION, imitation_layers=8))
    rollouts = [fold.rollouts for fold in context.folds]
    lengths = [(len(p), len(c)) for each in rollouts for p, c in zip(each.prompt_ids, each.completion_ids, strict=True)]
    prompt, completion = np.mean(lengths, axis=0)
    units = UnitCosts(costs=bench.costs, group_size=4, prompt_tokens=prompt, completion_tokens=completion)
    config, without = Config(model="tiny"), replace(context.plan, imitation_layers=0, imitation_prompts=0)
    planned = probe_cost(config, units, layers, context.plan, 0) - probe_cost(config, units, layers, without, 0)
    assert context.responses  # paid for by others
    before = bench.spent
    SelfImitation().score(context)
    spent = (bench.spent - before).layer_tokens
    assert 0.6 * planned.layer_tokens < spent <= planned.layer_tokens


def test_hardly_any_success_leaves_it_out_and_says_so(tmp_path: Path) -> None:
    task = make_task(lambda prompts, completion_ids, **_: [float(i == 1) for i in range(len(prompts))])
    context = make_context(make_bench(build_model("qwen3"), tmp_path, task), (0, 1), IMITATION)
    assert SelfImitation().score(context) is None
    assert context.notes == ["self_imitation left out: too few of the base's completions are better than others"]
