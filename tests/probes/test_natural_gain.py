"""Sketches against exact gradients, and the natural gain against plain numpy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, build_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D
from workbench_helpers import Untouched, make_bench, make_context, make_task, plain_log_probs, sample_folds

from autolayer.models.layers import find_layers
from autolayer.models.memory_estimate import gradient_bytes
from autolayer.probes import PROBES
from autolayer.probes.gradient import streamed_gradient
from autolayer.probes.gradient_projection import PROJECTION_DIM, GradientProjector
from autolayer.probes.natural_gain import NUM_PARTS, natural_direction, natural_gains
from autolayer.probes.shared_backward import ProjectedGradients
from autolayer.probes.shared_batch import Fold, make_fold
from autolayer.training.workbench import Workbench

WIDE = 1000
"""More than any width here: no direction is lost, and a sketch is the gradient itself."""


def build_any(architecture: str) -> Any:
    if architecture != "gpt2":
        return build_model(architecture, num_layers=2, hidden=16)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64, eos_token_id=1, pad_token_id=0,
        bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def one_fold(bench: Workbench, prompts: int = 6) -> Fold:
    return make_fold(bench, sample_folds(bench, prompts, num_folds=1)[0])


def sketch(
    bench: Workbench, fold: Fold, layers: tuple[int, ...], *, max_sequences: int | None = None, **options: Any
) -> GradientProjector:
    projector = GradientProjector(bench.model, layers, **options)
    with projector.watching():
        streamed_gradient(bench, fold.batch, fold.advantages_B, layers, max_sequences=max_sequences)
    return projector


def exact_rows(model: Any, fold: Fold, layer: int) -> torch.Tensor:
    """Gradient of log pi(y_i) by every linear map's weights, (B, weights): one plain backward for each sequence."""
    maps = [module for module in find_layers(model)[layer].modules() if isinstance(module, nn.Linear | Conv1D)]
    rows = []
    for prompt, completion in zip(fold.rollouts.prompt_ids, fold.rollouts.completion_ids, strict=True):
        with torch.enable_grad():
            for module in maps:
                module.weight.requires_grad_(True)
            found = torch.autograd.grad(
                plain_log_probs(model, prompt, completion).sum(), [module.weight for module in maps]
            )
        # As (input, output), however the map keeps its weights.
        both = zip(maps, found, strict=True)
        rows.append(torch.cat([(g if isinstance(module, Conv1D) else g.T).flatten() for module, g in both]))
    for module in maps:
        module.weight.requires_grad_(False)
    return torch.stack(rows)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape and bool(expected.any())
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


# Sketches


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt2"])
def test_with_every_direction_a_sketch_is_each_completions_exact_gradient(architecture: str, tmp_path: Path) -> None:
    model = build_any(architecture)
    model.requires_grad_(False)
    uneven = {"probe": ["7" * n + "=" for n in range(6)], "train": ["1="], "select": ["2="], "eval": ["3="]}
    bench = make_bench(model, tmp_path, make_task(prompts=uneven))
    fold = one_fold(bench)
    assert not bool(fold.batch.attention_mask.all()), "no padding to test"
    projector = sketch(bench, fold, (0, 1), side=WIDE)
    for layer in (0, 1):
        weight_B = fold.advantages_B / len(fold.advantages_B)
        same(projector.rows(layer), exact_rows(model, fold, layer) * weight_B[:, None])


@pytest.mark.parametrize("side", [PROJECTION_DIM, WIDE])
def test_micro_batches_do_not_matter(side: int, tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    fold = one_fold(bench)
    whole = sketch(bench, fold, (0, 1), side=side)
    for max_sequences in (1, 7, 24):
        parts = sketch(bench, fold, (0, 1), side=side, max_sequences=max_sequences)
        for layer in (0, 1):
            same(parts.rows(layer), whole.rows(layer))


def test_equal_sketchers_use_the_same_directions_and_other_seeds_others(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    fold = one_fold(bench)
    one, torch_state = sketch(bench, fold, (0, 1)), torch.get_rng_state()
    torch.manual_seed(5)
    again, other = sketch(bench, fold, (0, 1)), sketch(bench, fold, (0, 1), seed=1)
    torch.set_rng_state(torch_state)
    for layer in (0, 1):
        assert torch.equal(one.rows(layer), again.rows(layer))
        assert not torch.allclose(one.rows(layer), other.rows(layer))


def test_inner_products_of_sketches_are_right_on_average(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    fold = one_fold(bench, prompts=3)
    exact = sketch(bench, fold, (0,), side=WIDE).rows(0)
    samples = []
    for seed in range(80):
        rows = sketch(bench, fold, (0,), side=8, seed=seed).rows(0)
        assert rows.shape[1] == 7 * 8 * 8
        samples.append(rows @ rows.T)
    gram, expected = torch.stack(samples), exact @ exact.T
    error = (gram.mean(0) - expected).abs() / (gram.std(0) / len(samples) ** 0.5)
    assert float(error.max()) < 4.5 and float(error.square().mean()) < 3
    assert float((gram.mean(0) - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_kept_as_narrow_as_the_model_where_that_loses_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", dtype=dtype), tmp_path)
    fold = one_fold(bench)
    passes = [
        streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 1), max_sequences=count) for count in (1, 1000)
    ]
    for layer in (0, 1):
        for name, narrow in passes[0][layer].items():
            assert narrow.dtype == (torch.float32 if dtype == torch.float16 else dtype)
            assert float((narrow - passes[1][layer][name]).float().norm()) <= 0.05 * float(narrow.float().norm())
    held = sum(g.nbytes for layer in (0, 1) for g in passes[0][layer].values())
    one_float32 = sum(4 * g.numel() for layer in (0, 1) for g in passes[0][layer].values())
    if dtype == torch.bfloat16:
        assert gradient_bytes(bench.model, (0, 1), 3) == 2 * held + one_float32


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "gpt2"])
def test_a_sketcher_changes_no_gradient_and_leaves_no_hook(architecture: str, tmp_path: Path) -> None:
    model = build_any(architecture)
    bench = make_bench(model, tmp_path)
    fold = one_fold(bench)
    plain = streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 1))
    before, projector = Untouched(model), GradientProjector(model, (0, 1))
    with projector.watching():
        watched = streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 1))
    before.check()
    for layer in (0, 1):
        assert all(torch.equal(gradient, watched[layer][name]) for name, gradient in plain[layer].items())
    rows = projector.rows(0)
    streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 1))
    assert torch.equal(projector.rows(0), rows), "it still watches"


def test_an_error_inside_leaves_no_hook(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=2)
    before, projector = Untouched(model), GradientProjector(model, (0, 1))
    with pytest.raises(KeyboardInterrupt), projector.watching():
        raise KeyboardInterrupt
    with pytest.raises(IndexError), GradientProjector(model, (0, 9)).watching():
        pass
    before.check()
    assert projector.rows(0).numel() == 0


# What a layer sees of the shared batch


def test_sketched_are_gradients_of_the_log_probability_itself(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=2, hidden=16)
    bench = make_bench(model, tmp_path, make_task(_sparse))
    context = make_context(bench, (0, 1))
    context.__dict__["fold_gradients"] = [
        replace(found, projector=sketch(bench, fold, (0, 1), side=WIDE))
        for fold, found in zip(context.folds, context.fold_gradients, strict=True)
    ]
    for layer in (0, 1):
        found = context.projected_gradients(layer)
        rows, advantages, prompts = [], [], []
        for index, fold in enumerate(context.folds):
            for place, (row, advantage) in enumerate(
                zip(exact_rows(model, fold, layer), fold.advantages_B, strict=True)
            ):
                if advantage != 0:
                    rows.append(row)
                    advantages.append(float(advantage))
                    prompts.append(6 * index + place // 4)
        same(found.rows_B_D, torch.stack(rows).double())
        assert found.rows_B_D.dtype == torch.float64
        assert found.advantages_B.tolist() == pytest.approx(advantages)
        assert found.prompt_B.tolist() == prompts
        assert 0 < len(rows) < 72 and len(set(prompts)) < 18, "every prompt has an advantage: nothing was left out"


def _sparse(prompts: list, completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Right or wrong; for some prompts always wrong."""
    return [float(sum(ids) % 5 == 0) for ids in completion_ids]


def test_the_shared_pass_is_made_once_and_costs_what_it_did_without_sketches(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    context = make_context(bench, (0, 1))
    before = bench.spent
    for fold in context.folds:
        streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 1))
    alone = bench.spent - before
    before = bench.spent
    PROBES["natural_gain"].score(context)
    PROBES["gradient_norm"].score(context)
    PROBES["natural_gain"].score(context)
    assert (bench.spent - before).layer_tokens == pytest.approx(alone.layer_tokens) and alone.layer_tokens > 0


# Direction and score


@pytest.mark.parametrize("damping", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("count", "width"), [(30, 12), (12, 30), (20, 20), (1, 5)])
def test_the_direction_solves_the_damped_system(count: int, width: int, damping: float) -> None:
    generator = np.random.default_rng(count)
    rows, advantages = generator.normal(size=(count, width)), generator.normal(size=count)
    fisher = rows.T @ rows / count
    eigenvalues = np.linalg.eigvalsh(fisher)
    mean = eigenvalues.sum() / min(count, width)  # over those that can differ from 0
    expected = np.linalg.solve(fisher + damping * mean * np.eye(width), rows.T @ advantages / count)
    found = natural_direction(torch.tensor(rows), torch.tensor(advantages), damping)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8)


def test_both_ways_to_solve_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    advantages = torch.randn(20, generator=generator, dtype=torch.float64)
    padded = torch.cat([rows, torch.zeros(20, 40, dtype=torch.float64)], 1)  # the same problem, wider than deep
    # The mean eigenvalue is over 8 there and over 20 here.
    narrow, wide = natural_direction(rows, advantages, 1.0), natural_direction(padded, advantages, 20 / 8)
    torch.testing.assert_close(wide[:8], narrow)
    assert not wide[8:].any()


def projected(rows: np.ndarray, advantages: np.ndarray, group: int = 4) -> ProjectedGradients:
    return ProjectedGradients(
        rows_B_D=torch.tensor(rows), advantages_B=torch.tensor(advantages), prompt_B=torch.arange(len(rows)) // group
    )


def noise(seed: int, count: int = 96, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, width)), generator.normal(size=count)


def test_the_score_is_what_its_formula_says() -> None:
    rows, advantages = noise(3, count=48)
    prompts, expected = np.arange(48) // 4, []
    for part in range(NUM_PARTS):
        inside = prompts % NUM_PARTS == part
        x, a = rows[~inside], advantages[~inside]
        fisher = x.T @ x / len(x)
        added = np.trace(fisher) / min(x.shape)
        direction = np.linalg.solve(fisher + added * np.eye(30), x.T @ a / len(x))
        along = rows[inside] @ direction
        expected.append(np.mean(along * advantages[inside]) / np.sqrt(np.mean(along**2)))
    assert natural_gains(projected(rows, advantages), damping=1.0) == pytest.approx(expected, rel=1e-9)


def test_a_planted_direction_scores_and_noise_does_not() -> None:
    planted, plain = [], []
    for seed in range(60):
        rows, advantages = noise(seed)
        plain.append(np.mean(natural_gains(projected(rows, advantages))))
        planted.append(np.mean(natural_gains(projected(rows, advantages + 0.7 * rows[:, 0]))))
    error = np.std(plain, ddof=1) / len(plain) ** 0.5
    assert abs(np.mean(plain)) < 3.5 * error and error < 0.05
    assert np.mean(planted) > 0.25 > 5 * abs(np.mean(plain))
    # The gain per nat along the planted direction itself: what no direction can exceed on average.
    assert np.mean(planted) < 0.7


def test_the_best_direction_is_found_where_the_steepest_is_not() -> None:
    """A loud direction that says nothing drowns a quiet one that says all; the curvature knows it is loud."""
    found, steepest = [], []
    for seed in range(30):
        rows, advantages = noise(seed)
        rows[:, 1] *= 10
        data = projected(rows, advantages + 0.7 * rows[:, 0])
        found.append(np.mean(natural_gains(data, damping=0.1)))
        steepest.append(np.mean(natural_gains(data, damping=1e9)))
    assert np.mean(found) > 1.5 * np.mean(steepest)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e5])
def test_the_score_has_no_unit_of_weights(scale: float) -> None:
    rows, advantages = noise(0)
    plain = natural_gains(projected(rows, advantages))
    assert natural_gains(projected(rows * scale, advantages)) == pytest.approx(plain, rel=1e-6)
    louder = natural_gains(projected(rows, advantages * 5))
    assert louder == pytest.approx([5 * gain for gain in plain], rel=1e-6)  # but that of the reward


def test_prompts_that_chose_a_direction_do_not_judge_it() -> None:
    """Completions of one prompt that repeat each other would look like skill if they were on both sides."""
    found = []
    for seed in range(40):
        rows, advantages = noise(seed, count=24, width=60)
        found.append(np.mean(natural_gains(projected(rows.repeat(4, 0), advantages.repeat(4)))))
    assert abs(np.mean(found)) < 3.5 * np.std(found, ddof=1) / len(found) ** 0.5


@pytest.mark.parametrize(
    ("rows", "prompts"),
    [
        (torch.zeros(8, 1), torch.arange(8)),
        (torch.zeros(0, 1), torch.arange(0)),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.long)),
    ],
    ids=["dead layer", "no advantage anywhere", "a single prompt"],
)
def test_where_nothing_can_be_judged_the_score_is_zero(rows: torch.Tensor, prompts: torch.Tensor) -> None:
    data = ProjectedGradients(rows_B_D=rows.double(), advantages_B=torch.ones(len(rows)).double(), prompt_B=prompts)
    gains = natural_gains(data)
    assert len(gains) >= 2 and not any(gains)  # a standard error can be made of it
