"""The probes' numbers against plain PyTorch, enumeration, brute force and stock TRL."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model
from workbench_helpers import PLAN, Untouched, make_bench, make_context, plain_log_probs, sample_folds

from autolayer.models.layers import layer_parameters
from autolayer.models.memory_estimate import gradient_bytes
from autolayer.probes import PROBES, step_response
from autolayer.probes.base import Scores
from autolayer.probes.gradient import streamed_gradient
from autolayer.probes.policy_distance import TARGET_DISTANCE, DistanceSteps
from autolayer.probes.representation_change import aligned_share
from autolayer.probes.shared_batch import make_fold
from autolayer.probes.starting_rates import MAX_RATIO, starting_rates
from autolayer.probes.step_response import StepResponse
from autolayer.rollouts.rollouts import Rollouts


@pytest.mark.parametrize("max_sequences", [None, 24, 7, 1])
@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe"])
def test_the_streamed_gradient_is_that_of_an_ordinary_full_backward(
    architecture: str, max_sequences: int | None, tmp_path: Path
) -> None:
    model = build_model(architecture)
    bench = make_bench(model, tmp_path, temperature=0.9)
    fold = make_fold(bench, sample_folds(bench, num_folds=1)[0])
    before = Untouched(model)
    found = streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 2, 3), max_sequences=max_sequences)
    before.check()

    twin = build_model(architecture)  # every parameter requires a gradient
    total = torch.zeros(())
    rewards = torch.tensor(fold.rollouts.rewards).view(-1, 4)
    advantages = (rewards - rewards.mean(1, keepdim=True)) * 4 / 3  # the mean of the others as baseline
    for prompt, completion, advantage in zip(
        fold.rollouts.prompt_ids, fold.rollouts.completion_ids, advantages.flatten(), strict=True
    ):
        total = total + advantage * plain_log_probs(twin, prompt, completion, 0.9).sum() / 24
    total.backward()
    assert set(found) == {0, 2, 3}
    for layer in (0, 2, 3):
        expected = {name: twin.get_parameter(name).grad for name in layer_parameters(twin, (layer,))}
        assert found[layer].keys() == expected.keys()
        squared = sum(float(g.square().sum()) for g in expected.values() if g is not None)
        error = sum(
            float((found[layer][name] - (torch.zeros(()) if g is None else g)).square().sum())
            for name, g in expected.items()
        )
        assert squared > 0 and error**0.5 <= 1e-5 * squared**0.5


def test_an_expert_without_tokens_has_a_zero_gradient(tmp_path: Path) -> None:
    model = build_model("qwen3_moe", num_experts=4)
    with torch.no_grad():  # expert 3 of layer 1 is never among the best two
        model.model.layers[1].mlp.gate.weight[3] = 0
        model.model.layers[1].mlp.gate.weight[:2] *= 100
    bench = make_bench(model, tmp_path)
    fold = make_fold(bench, sample_folds(bench, num_folds=1)[0])
    gradient = streamed_gradient(bench, fold.batch, fold.advantages_B, (1,))[1]
    assert gradient.keys() == layer_parameters(model, (1,)).keys()
    assert all(bool(g.isfinite().all()) for g in gradient.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_kept_as_narrow_as_the_model_where_that_loses_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", dtype=dtype), tmp_path)
    fold = make_fold(bench, sample_folds(bench, num_folds=1)[0])
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


def test_the_shared_pass_is_made_once(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", num_layers=2), tmp_path)
    context = make_context(bench, (0, 1))
    before = bench.spent
    for fold in context.folds:
        streamed_gradient(bench, fold.batch, fold.advantages_B, (0, 1))
    alone = bench.spent - before
    before = bench.spent
    PROBES["gradient_norm"].score(context)
    PROBES["gradient_norm"].score(context)
    assert (bench.spent - before).layer_tokens == pytest.approx(alone.layer_tokens) and alone.layer_tokens > 0


def _final_state(model: Any, rollouts: Rollouts) -> torch.Tensor:
    """Mean final hidden state over the positions that choose a completion's tokens, sequence by sequence."""
    states = []
    with torch.no_grad():
        for prompt, completion in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True):
            output = model(input_ids=torch.tensor([prompt + completion]), output_hidden_states=True)
            states.append(output.hidden_states[-1][0, len(prompt) - 1 : -1].double().mean(0))
    return torch.stack(states)


@pytest.mark.parametrize("layer", [0, 2])
def test_movement_and_deviation_equal_finite_differences_of_plain_forwards(layer: int, tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=3)
    bench = make_bench(model, tmp_path)
    context = make_context(bench, (layer,))
    response, direction = context.responses[layer][1], context.direction(layer, without=1)
    fold = response.fold
    assert fold.rollouts == context.folds[1].rollouts.thinned(2)
    # In float64 a far smaller step can be taken on both sides: the derivative itself, to six digits and more.
    up, down = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    size = 1e-6
    with torch.no_grad():
        for name, step in direction.items():
            up.get_parameter(name).add_(step.double(), alpha=size)
            down.get_parameter(name).add_(step.double(), alpha=-size)
    movement = (_final_state(up, fold.rollouts) - _final_state(down, fold.rollouts)) / (2 * size)
    # The response takes one step whose log-ratio deviates by .1: curvature leaves up to a fifth of the movement.
    found = response.movement_B_D
    assert float((found - movement).norm()) < 0.2 * float(movement.norm())
    ratios = []
    with torch.no_grad():
        for prompt, completion in zip(fold.rollouts.prompt_ids, fold.rollouts.completion_ids, strict=True):
            pair = [float(_double_log_prob(twin, prompt, completion)) for twin in (up, down)]
            ratios.append((pair[0] - pair[1]) / (2 * size))
    assert response.deviation == pytest.approx(float(np.std(ratios, ddof=1)), rel=0.1)


def _double_log_prob(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum()


@pytest.mark.parametrize("layer", [0, 2])
def test_movement_equals_the_difference_of_two_plain_forwards_at_the_step_it_took(
    layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("qwen3", num_layers=3)
    bench = make_bench(model, tmp_path)
    context = make_context(bench, (layer,))
    sizes: list[float] = []
    stepped = step_response.stepped
    monkeypatch.setattr(step_response, "stepped", lambda *args: sizes.append(args[2]) or stepped(*args))
    found = DistanceSteps(step=1.0, by_part=(1.0, 1.0))
    monkeypatch.setattr(step_response, "find_distance_steps", lambda *args, **options: found)  # takes more steps
    direction = context.direction(layer, without=1)
    response = context.steps.measure(layer, 1, direction, context.plan.response_prompts)
    fold = response.fold
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, step in direction.items():
            moved.get_parameter(name).add_(step, alpha=-sizes[-1])  # the last look is at the opposite step
    movement = (_final_state(moved, fold.rollouts) - _final_state(model, fold.rollouts)) / -sizes[-1]
    assert float((response.movement_B_D - movement).norm()) < 1e-4 * float(movement.norm())


def test_the_aligned_share_is_the_double_loop_over_pairs_of_different_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    count, group, width = 12, 4, 5
    movement = torch.randn(count, width, dtype=torch.float64, generator=generator)
    advantages = torch.randn(count, dtype=torch.float64, generator=generator)
    rollouts = Rollouts.of_one_turn(
        prompt_ids=[[2]] * count, completion_ids=[[2]] * count, texts=[""] * count, rewards=[0.0] * count,
        finished=[True] * count, group_size=group,
    )  # fmt: skip
    fold: Any = type("Fold", (), {"rollouts": rollouts, "advantages_B": advantages})()
    m, a = movement.numpy().copy(), advantages.numpy().copy()
    for start in range(0, count, group):
        m[start : start + group] -= m[start : start + group].mean(0)
        a[start : start + group] -= a[start : start + group].mean()
    pairs = [(i, j) for i in range(count) for j in range(count) if i // group != j // group]
    crossed = sum(a[i] * a[j] * (m[i] @ m[j]) for i, j in pairs)
    expected = crossed / len(pairs) / (np.mean((m**2).sum(1)) * np.mean(a**2))
    found = aligned_share(StepResponse(deviation=1.0, movement_B_D=movement, fold=fold))
    assert found == pytest.approx(expected, rel=1e-9)
    scaled = aligned_share(StepResponse(deviation=1.0, movement_B_D=movement * 1e-4, fold=fold))
    assert scaled == pytest.approx(expected, rel=1e-9)
    assert aligned_share(StepResponse(deviation=1.0, movement_B_D=movement * 0, fold=fold)) == 0


def test_both_gains_judge_the_other_folds_direction_on_each_fold(tmp_path: Path) -> None:
    context = make_context(make_bench(build_model("qwen3", num_layers=2), tmp_path), (0, 1))
    expected = []
    for layer in (0, 1):
        parts = [gradient[layer] for gradient in context.gradients]
        deviation = np.mean([response.deviation for response in context.responses[layer]])
        for index in range(3):
            one, two = (part for other, part in enumerate(parts) if other != index)
            gain = sum(float(((one[n] + two[n]).sign() * parts[index][n]).double().sum()) for n in one)
            expected.append({"sign_gain": gain, "gain_per_kl": gain / deviation})
    for name, gains in (("sign_gain", context.sign_gains), ("gain_per_kl", context.gains_per_kl)):
        found = Scores.of_samples([gains[layer] for layer in (0, 1)])
        assert found.errors_L is not None
        for index in (0, 1):
            samples = np.array([each[name] for each in expected[3 * index : 3 * index + 3]])
            assert found.scores_L[index] == pytest.approx(samples.mean(), rel=1e-5)
            assert found.errors_L[index] == pytest.approx(samples.std(ddof=1) / 3**0.5, rel=1e-4)


def test_the_gradient_norm_is_the_mean_over_folds_of_the_euclidean_norm(tmp_path: Path) -> None:
    context = make_context(make_bench(build_model("qwen3", num_layers=2), tmp_path), (1,))
    norms = [float(torch.cat([g.flatten() for g in part[1].values()]).norm()) for part in context.gradients]
    found = PROBES["gradient_norm"].score(context)
    assert found is not None and found.scores_L[0] == pytest.approx(sum(norms) / 3, rel=1e-5)


def test_at_its_rate_so_many_steps_in_one_direction_take_every_layer_equally_far(tmp_path: Path) -> None:
    model = build_model("qwen3")
    bench = make_bench(model, tmp_path)
    context = make_context(bench, (0, 1, 2, 3), prompts=8)
    for layer, rate in starting_rates(context, 5).items():
        assert rate is not None
        squares = []
        for index, fold in enumerate(context.folds):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for name, step in context.direction(layer, without=index).items():
                    moved.get_parameter(name).add_(step, alpha=5 * rate)
                rollouts = fold.rollouts[:6].thinned(2)
                pairs = list(zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True))
                change = [plain_log_probs(moved, *p).sum() - plain_log_probs(model, *p).sum() for p in pairs]
            squares.append(float(torch.stack(change).square().mean()))
        # The step is the geometric mean of the folds', which differ.
        assert np.mean(squares) ** 0.5 == pytest.approx(TARGET_DISTANCE, rel=0.3)


def test_no_rate_is_far_above_the_other_layers() -> None:
    steps = {0: 1.0, 1: 2.0, 2: 50.0, 3: 0.0, 4: 3.0}
    context: Any = SimpleNamespace(plan=PLAN, layers=tuple(steps), distance_step=steps.__getitem__)
    assert starting_rates(context, 10) == {0: 0.1, 1: 0.2, 2: pytest.approx(MAX_RATIO * 0.25), 3: None, 4: 0.3}
    dead: Any = SimpleNamespace(plan=PLAN, layers=(0,), distance_step=lambda layer: 0.0)
    assert starting_rates(dead, 10) == {0: None}


def test_a_layer_that_moves_the_policy_is_not_dead_where_two_estimates_of_its_slope_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few completions are such a case, where the policy curves: going back moves it the same way, and farther."""
    context = make_context(make_bench(build_model("qwen3", num_layers=2), tmp_path), (0, 1), prompts=4)
    stepped, plain, sizes = step_response.stepped, context.steps.log_probs, []
    slope_B = torch.tensor([3.0, -1.0, 2.0, 0.5, -2.0, 1.0, 1.5, -0.5], dtype=torch.float64)

    @contextlib.contextmanager
    def watched(model: Any, direction: dict[str, torch.Tensor], size: float) -> Iterator[None]:
        sizes.append(size)
        with stepped(model, direction, size):
            yield
        sizes.pop()

    def curved(batch: Any) -> torch.Tensor:
        plain(batch)
        size = sizes[-1] if sizes else 0.0
        return slope_B * (size if size > 0 else -3 * size)

    monkeypatch.setattr(step_response, "stepped", watched)
    monkeypatch.setattr(context.steps, "log_probs", curved)
    response = context.steps.measure(1, 0, context.direction(1, without=0), context.plan.response_prompts)
    assert response.deviation == pytest.approx(float(slope_B.std()))
    assert response.distance_step == pytest.approx(TARGET_DISTANCE / float(slope_B.square().mean()) ** 0.5, rel=1e-3)
    assert min(response.reaches) > 0
