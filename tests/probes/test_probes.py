"""The contract that every entry of PROBES keeps, a layer that does nothing, and the prediction."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tiny_models import build_model
from workbench_helpers import Untouched, make_bench, make_context, make_task, sample_folds

from autolayer.core.depth_prior import BASELINES
from autolayer.core.errors import ConfigError
from autolayer.core.probe_plan import ProbePlan
from autolayer.models.layers import find_layers
from autolayer.probes import PROBES
from autolayer.probes.base import Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.predictor import SIGNAL
from autolayer.probes.probe_report import ProbeReport, joint_rate
from autolayer.probes.run_probes import run_probes
from autolayer.probes.starting_rates import STEPS_TO_DISTANCE, starting_rates, steps_to_distance

PLAN = ProbePlan(
    fold_prompts=6,
    response_folds=3,
    response_prompts=4,
    cutoff_pairs=9,
    imitation_layers=4,
    imitation_prompts=6,
)
NONE = ProbePlan(
    fold_prompts=6,
    response_folds=3,
    response_prompts=4,
    cutoff_pairs=0,
)
OF_THE_BASE = {"cutoff"}
"""Probes that look at the base model alone, neither at rewards nor at what a layer's weights can do."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def _score(name: str, context: ProbeContext) -> np.ndarray:
    found = PROBES[name].score(context)
    assert found is not None
    return found.scores_L


def test_every_signal_documents_itself_and_is_no_baseline() -> None:
    assert {name for name, probe in PROBES.items() if probe.is_baseline} == set(BASELINES)
    assert SIGNAL in set(PROBES) - set(BASELINES)
    for name in set(PROBES) - set(BASELINES):
        text = type(PROBES[name]).__doc__ or ""
        assert all(word in text for word in ("Formula:", "Shape", "Source:", "Cost:", "Known to fail:")), name


@DTYPES
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_scores_every_candidate_reproducibly_and_leaves_no_trace(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    layers, found = (0, 1), []
    for run in range(2):
        # Larger weights let completions depend on the prompt, without which some probes do not apply.
        model = build_model("qwen3", num_layers=3, dtype=dtype, initializer_range=0.3)
        bench = make_bench(model, tmp_path / str(run))
        context = make_context(bench, layers, PLAN)
        if run:  # what was done before must not matter
            torch.manual_seed(99)
            np.random.seed(99)
            bench.sample(bench.task.splits["train"][:2], [1, 2])
        before = Untouched(model)
        scores = PROBES[name].score(context)
        before.check()
        assert scores is not None and scores.scores_L.shape == (2,) and np.isfinite(scores.scores_L).all()
        assert (scores.errors_L is None) == PROBES[name].is_baseline
        assert scores.errors_L is None or (scores.errors_L.shape == (2,) and np.isfinite(scores.errors_L).all())
        found.append(scores.scores_L.tolist())
        assert _score(name, context).tolist() == found[0]  # a context may be asked twice
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_probe_in_a_training_mode_model_gives_that_mode_back(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=2).train()
    bench = make_bench(model, tmp_path)
    context = make_context(bench, (0, 1), PLAN)
    before = Untouched(model)
    for probe in PROBES.values():
        probe.score(context)
    before.check()


def test_an_interrupt_in_a_probe_leaves_no_trace(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=2, dtype=torch.bfloat16)
    bench = make_bench(model, tmp_path)
    context = make_context(bench, (0, 1), PLAN)
    before = Untouched(model)
    log_probs, calls = bench.scorer.log_probs, 0

    def interrupted(batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (2, 7):
            raise KeyboardInterrupt
        return log_probs(batch)

    bench.scorer.log_probs = interrupted  # pyright: ignore
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            PROBES["representation_change"].score(context)
        before.check()


def test_a_probe_that_the_plan_leaves_out_returns_nothing_and_costs_nothing(tmp_path: Path) -> None:
    context = make_context(make_bench(build_model("qwen3", num_layers=2), tmp_path), (0, 1), NONE)
    before = context.bench.spent
    assert all(PROBES[name].score(context) is None for name in ("cutoff", "self_imitation"))
    assert context.bench.spent == before


@DTYPES
def test_a_layer_whose_branches_are_zero_scores_exactly_zero_and_the_others_do_not(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, dead = build_model("qwen3", num_layers=4, dtype=dtype), 1
    block: Any = find_layers(model)[dead]
    block.self_attn.register_forward_hook(lambda module, arguments, output: (output[0] * 0, *output[1:]))
    block.mlp.register_forward_hook(lambda module, arguments, output: output * 0)
    bench = make_bench(model, tmp_path)
    context = make_context(bench, (0, 1, 2, 3), PLAN)
    for name, probe in PROBES.items():
        if not probe.is_baseline and name not in OF_THE_BASE:
            scores = _score(name, context)
            assert scores[dead] == 0, name
            assert all(scores[layer] != 0 for layer in (0, 2, 3)), (name, scores)
    rates = starting_rates(context, STEPS_TO_DISTANCE)
    assert rates[dead] is None and all(rates[layer] for layer in (0, 2, 3))


def test_the_one_fold_of_a_small_response_is_one_that_has_a_direction(tmp_path: Path) -> None:
    """Rewards differ in the first fold only: there is nothing to follow but on the other two."""
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    context = make_context(bench, (0, 1), replace(PLAN, response_folds=1))
    for fold in context.folds[1:]:
        fold.advantages_B.zero_()
    (response,) = context.responses[1]
    assert response.deviation > 0 and response.fold.rollouts.prompt_ids[0] == context.folds[1].rollouts.prompt_ids[0]


def test_without_any_difference_in_reward_every_score_is_zero(tmp_path: Path) -> None:
    task = make_task(lambda prompts, **_: [1.0] * len(prompts))
    context = make_context(make_bench(build_model("qwen3", num_layers=2), tmp_path, task), (0, 1), PLAN)
    for name, probe in PROBES.items():
        if not probe.is_baseline and name not in OF_THE_BASE:
            assert not _score(name, context).any(), name


def test_baselines_know_depth_and_seed_only(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=7), tmp_path)

    def order(name: str, layers: tuple[int, ...], seed: int = 0) -> list[int]:
        scores = _score(name, make_context(bench, layers, PLAN, seed=seed))
        return [layers[i] for i in np.argsort(-scores, kind="stable")]

    everything = tuple(range(7))
    assert order("first", everything) == list(everything) and order("last", everything) == list(everything)[::-1]
    assert order("middle", everything)[0] == 3 and set(order("middle", everything)[-2:]) == {0, 6}
    assert order("middle", (0, 5, 6))[0] == 5  # the depth in the model, not among the candidates
    assert order("random", everything) == order("random", everything)
    assert len({tuple(order("random", everything, seed)) for seed in range(6)}) > 3


# From scores to a prediction


def test_the_whole_stage_reports_every_probe_and_uses_what_calibration_sampled(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=3, initializer_range=0.3)
    bench = make_bench(model, tmp_path)
    rollouts = sample_folds(bench, prompts=7, num_folds=1)[0]
    before, sampled = Untouched(model), []
    sample = bench.sample
    bench.sample = lambda rows, *a, **k: sampled.append(list(rows)) or sample(rows, *a, **k)  # pyright: ignore
    layers, named = (0, 1, 2), []
    report = run_probes(bench, layers, rollouts, PLAN, num_folds=3, total_steps=400, seed=0, on_probe=named.append)
    before.check()
    assert sampled[0] == bench.task.splits["probe"][7:18]  # 3 folds of 6 prompts, 7 of them there already
    assert named == list(report.scores) == list(PROBES)
    assert TypeAdapter(ProbeReport).validate_python(json.loads(json.dumps(asdict(report)))) == report
    assert len(report.predicted) == len(report.learning_rates) == 3 and report.learned_from == 0
    assert all(low < value < high for low, value, high in zip(report.low, report.predicted, report.high, strict=True))
    assert set(report.reliability) == set(PROBES) - set(BASELINES)
    small = run_probes(bench, layers, rollouts, NONE, num_folds=3, total_steps=400, seed=0)
    assert set(PROBES) - set(small.scores) == {"cutoff", "self_imitation"}
    short = run_probes(bench, layers, rollouts, NONE, num_folds=3, total_steps=10, seed=0)
    assert (
        steps_to_distance(400) == 28 and steps_to_distance(10) == STEPS_TO_DISTANCE
    )  # the longer a run, the slower it starts
    assert np.array(short.learning_rates) / np.array(small.learning_rates) == pytest.approx(28 / STEPS_TO_DISTANCE)
    rates = [rate for rate in report.learning_rates if rate is not None]
    assert joint_rate(report) == pytest.approx(math.sqrt(1 / sum(1 / rate**2 for rate in rates)))
    with pytest.raises(ConfigError, match="--layers"):
        joint_rate(replace(report, learning_rates=(None,) * 3))


def test_a_probe_split_smaller_than_the_plan_is_divided_into_equal_folds(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    rollouts = sample_folds(bench, prompts=24, num_folds=1)[0]
    large = replace(PLAN, fold_prompts=64)
    report = run_probes(bench, (0, 1), rollouts, large, num_folds=3, total_steps=400, seed=0)
    assert set(PROBES) == set(report.scores)


def test_reliability_is_the_share_of_the_variance_that_is_not_noise() -> None:
    generator = np.random.default_rng(0)
    true_L, found = generator.normal(0, 1, 4000), []
    for noise in (0.0, 1.0, 3.0):
        samples = true_L[:, None] + generator.normal(0, noise, (4000, 4))
        found.append(Scores.of_samples(samples.tolist()).reliability)
    assert found == pytest.approx([1, 1 / (1 + 1 / 4), 1 / (1 + 9 / 4)], abs=0.03)
    assert Scores.of_samples(generator.normal(0, 1, (4000, 4)).tolist()).reliability < 0.05
