"""The first step that arms share: bit for bit what each would have made alone, and paid for once, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from multi_turn_helpers import make_task as make_episodes
from multi_turn_helpers import often_ending
from pick_helpers import short_pick
from small_device import SmallDevice
from tiny_models import build_model
from workbench_helpers import Untouched, assert_equal, make_bench, make_task, mean_id

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError, TrainingError
from autolayer.core.run_folder import RunFolder
from autolayer.models.layers import find_layers
from autolayer.pipeline import stages
from autolayer.search import study
from autolayer.search.records import Outcome, RaceConfig
from autolayer.tasks.base import SPLITS
from autolayer.training import checkpoints, first_step, micro_batching
from autolayer.training.shared_pass import share_first_step
from autolayer.training.workbench import Workbench

LR = 1e-3
SETS = ((0,), (2,), (3,))

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "micro-batches, uneven prompts": {"micro_batch_tokens": 120, "uneven": True},
    "dr_grpo": {"algorithm": "dr_grpo"},
    "kl": {"beta": 0.2},
    "bf16, kl, micro-batches": {"dtype": torch.bfloat16, "beta": 0.2, "micro_batch_tokens": 40},
    "dr_grpo, recomputed": {"algorithm": "dr_grpo", "recompute": True},
    "experts": {"architecture": "qwen3_moe"},
    "sets": {"sets": ((0, 2), (1, 2), (2, 3))},
    "adapters": {"adapted": True},
    "episodes": {"episodes": True},
    "gigpo": {"episodes": True, "algorithm": "gigpo"},
}


def state(bench: Workbench, arm: Arm) -> dict[str, torch.Tensor]:
    return checkpoints.read(bench.folder.path, arm)[0]


def make(
    folder: Path,
    *,
    architecture: str = "qwen3",
    dtype: torch.dtype = torch.float32,
    uneven: bool = False,
    episodes: bool = False,
    adapted: bool = False,
    recompute: bool = False,
    reward: Callable[..., Any] = mean_id,
    **options: Any,
) -> Workbench:
    texts = [f"{i}+" + "1" * (1 + i * i % 23) for i in range(24)]
    task = make_task(reward, prompts={name: [name + text for text in texts] for name in SPLITS} if uneven else None)
    model = build_model(architecture, dtype=dtype)
    if episodes:
        model, task = often_ending(), make_episodes()
    bench = make_bench(model, folder, task, **options)
    bench.passes.recompute = recompute
    if adapted:
        bench.adapt((0, 1, 2, 3), seed=0)
    return bench


LONG = ("micro-batches, uneven prompts", "dr_grpo, recomputed", "experts", "sets", "adapters", "episodes", "gigpo")
"""For `make test-long`."""


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.minutes) if name in LONG else name for name in VARIANTS]
)
def test_arms_that_share_their_first_step_are_those_that_do_not(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(VARIANTS[variant])
    sets = options.pop("sets", SETS)
    if tokens := options.pop("micro_batch_tokens", 0):
        monkeypatch.setattr(micro_batching, "TOKENS", tokens)
    shared = make(tmp_path / "shared", **options)
    before = Untouched(shared.model)
    arms = [Arm(layers=layers, learning_rate=LR * (1 + i), seed=1) for i, layers in enumerate(sets)]
    assert share_first_step(shared, sets, 1)
    before.check()
    tokens = shared.engine.tokens
    # A second rate of a layer that was in the first rung, one step only, and on from there.
    arms.append(replace(arms[-1], learning_rate=7 * LR))
    for arm in arms:
        alone = make(tmp_path / "alone" / arm.key, **options)
        one, whole = alone.train(arm, 1), alone.train(arm, 3)
        told: list[float] = []
        first = shared.train(arm, 1, on_step=told.append)
        assert shared.engine.tokens == tokens, "nothing is sampled again"
        assert_equal(state(shared, first.arm), state(alone, one.arm))
        assert told == pytest.approx([sum(one.train_rewards_P) / len(one.train_rewards_P)])
        found = shared.train(arm, 3, on_step=told.append)
        assert len(told) == 4 and found.train_rewards_P == whole.train_rewards_P
        assert_equal(state(shared, found.arm), state(alone, whole.arm))
        assert shared.training_cost(found.arm).layer_tokens == pytest.approx(whole.cost.layer_tokens), "as if alone"
        tokens = shared.engine.tokens
        before.check()
    first_step.forget_gradients(shared.folder)
    assert not list((tmp_path / "shared").glob("first-*"))


def passes_counted(bench: Workbench, work: Callable[[], Any]) -> float:
    """Layer-tokens of training by hooks, in passes of the whole batch: forward, activation and weight gradients."""
    model: Any = bench.model
    counts = {"blocks": 0, "head": 0}
    blocks: list[Any] = list(find_layers(model))

    def count(kind: str) -> None:
        counts[kind] += 1

    def run(kind: str) -> Callable[..., None]:
        def forward(module: Any, arguments: Any, output: Any) -> None:
            hidden = output if torch.is_tensor(output) else output[0]
            if torch.is_grad_enabled():
                count(kind)
            if hidden.requires_grad:
                hidden.register_hook(lambda _: count(kind))

        return forward

    handles = [block.register_forward_hook(run("blocks")) for block in blocks]
    handles.append(model.get_decoder().register_forward_hook(run("head")))
    for block in blocks:  # one weight stands for all of its block's
        weight = block.mlp.down_proj.weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(lambda _: count("blocks")))
        weight.requires_grad_(False)
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return counts["blocks"] + counts["head"] * bench.costs.head_ratio


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_the_bill_is_what_hooks_count(beta: float, tmp_path: Path) -> None:
    bench = make(tmp_path, beta=beta)
    arms = [Arm(layers=layers, learning_rate=LR, seed=1) for layers in SETS]
    segments: list[Any] = []

    def work() -> None:
        share_first_step(bench, SETS, 1)
        segments.extend(bench.train(arm, 1) for arm in arms)

    counted = passes_counted(bench, work)
    first = first_step.find(bench, arms[0], 4)
    assert first is not None
    sampled = bench.generation_cost(first.rollouts)
    reference = bench.costs.forward(first.rollouts.num_tokens).layer_tokens if beta else 0.0
    paid = sum((segment.cost for segment in segments), Cost())
    assert paid.layer_tokens - sampled.layer_tokens - reference == pytest.approx(counted * first.rollouts.num_tokens)
    assert paid.generated_tokens == bench.engine.tokens
    assert [segment.cost.generated_tokens for segment in segments] == [bench.engine.tokens, 0, 0]
    assert [segment.cost.layer_tokens for segment in segments[1:]] == pytest.approx([0, 0])
    assert bench.spent.layer_tokens == pytest.approx(paid.layer_tokens)
    again = bench.train(replace(arms[1], learning_rate=2 * LR), 1)
    assert again.cost.layer_tokens == pytest.approx(0), "nor does a second rate make the pass again"
    other = bench.train(Arm(layers=(1,), learning_rate=LR, seed=1), 1)  # no scout: the rollouts, but a pass of its own
    assert other.cost.generated_tokens == 0
    assert other.cost.layer_tokens == pytest.approx(bench.update_cost(first.rollouts, (1,)).layer_tokens)


class Stop(BaseException):
    """A kill."""


@pytest.mark.parametrize("moment", ["sampled", "gradient", "entry", "payer", "note", "second arm"])
def test_killed_at_any_moment_the_bill_and_the_arms_are_the_same(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [Arm(layers=layers, learning_rate=LR, seed=1) for layers in SETS]

    def play(bench: Workbench) -> list[Arm]:
        """As a race does: arms that have their checkpoint are not trained again."""
        found = []
        for arm in arms:
            share_first_step(bench, SETS, 1)
            latest = checkpoints.latest(bench.folder.path, arm)
            found.append(latest if latest.step == 2 else bench.train(latest, 2).arm)
        return found

    def bill(bench: Workbench, found: list[Arm]) -> list[float]:
        return [checkpoints.paid_for(bench.folder.path, arm).layer_tokens for arm in found]

    whole = make(tmp_path / "whole")
    expected = play(whole)
    where: dict[str, tuple[Any, str, int]] = {
        "sampled": (first_step, "keep_gradient", 1),
        "gradient": (first_step, "keep", 1),
        "entry": (checkpoints, "note", 1),
        "payer": (first_step, "keep", 2),
        "note": (checkpoints, "write", 1),
        "second arm": (checkpoints, "write", 2),
    }
    module, name, calls = where[moment]
    original = getattr(module, name)

    def killing(*arguments: Any) -> None:
        nonlocal calls
        calls -= 1
        if not calls:
            raise Stop
        original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module, name, killing)
        play(make(tmp_path / "killed"))
    again = make(tmp_path / "killed")
    found = play(again)
    assert found == expected and bill(again, found) == pytest.approx(bill(whole, expected))
    for arm in found:
        assert_equal(state(again, arm), state(whole, arm))


def test_an_arm_that_fails_leaves_the_bill_to_the_next(tmp_path: Path) -> None:
    bench = make(tmp_path)
    bad, good = Arm(layers=(0,), learning_rate=1e30, seed=1), Arm(layers=(2,), learning_rate=LR, seed=1)
    share_first_step(bench, SETS, 1)
    with pytest.raises(TrainingError, match="--learning-rate"):
        bench.train(bad, 3)
    segment = bench.train(good, 1)
    first = first_step.find(bench, good, 4)
    assert first is not None and first.payer == good.key
    wanted = bench.generation_cost(first.rollouts) + bench.update_cost(first.rollouts, (0, 2, 3))
    assert segment.cost.layer_tokens == pytest.approx(wanted.layer_tokens)
    assert segment.cost.generated_tokens == wanted.generated_tokens


def test_nothing_is_shared_where_there_is_nothing_to_share(tmp_path: Path) -> None:
    bench = make(tmp_path)
    assert not share_first_step(bench, ((2,),), 1)  # alone
    bench.shares_first = False  # several workers
    assert not share_first_step(bench, SETS, 1)
    assert not list(tmp_path.iterdir()) and bench.engine.tokens == 0


def test_without_the_gradient_an_arm_makes_its_own_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arm = Arm(layers=(2,), learning_rate=LR, seed=1)
    alone = make(tmp_path / "alone")
    expected = alone.train(arm, 2)
    bench = make(tmp_path / "lost")
    share_first_step(bench, SETS, 1)
    first_step.forget_gradients(bench.folder)
    found = bench.train(arm, 2)
    assert_equal(state(bench, found.arm), state(alone, expected.arm))
    assert found.cost.layer_tokens > expected.cost.layer_tokens, "the shared pass was made, and is paid for"

    full = make(tmp_path / "full")
    full.folder.free_bytes = lambda: 0  # pyright: ignore
    assert not share_first_step(full, SETS, 1)
    assert "no room on disk" in caplog.text
    assert full.train(arm, 2).cost.layer_tokens == expected.cost.layer_tokens

    damaged = make(tmp_path / "damaged")
    share_first_step(damaged, SETS, 1)
    next((tmp_path / "damaged").glob("first-*")).write_bytes(b"short")
    with pytest.raises(RunFolderError, match="delete that file"):
        damaged.train(arm, 2)


def test_the_shared_pass_takes_less_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm(layers=(2,), learning_rate=LR, seed=1)
    monkeypatch.setattr(micro_batching, "TOKENS", 128)
    monkeypatch.setattr(micro_batching, "SMALL", 16)
    bench = make(tmp_path / "small")
    device = SmallDevice(bench.model, most=30)
    share_first_step(bench, SETS, 1)
    first = first_step.find(bench, arm, 4)
    assert first is not None and first.kept and max(device.tried) > 30 and bench.passes.tokens == 32
    other = make(tmp_path / "none")  # nothing helps: each arm goes its own way
    device = SmallDevice(other.model, most=1)
    sizes = other.passes.sizes
    assert not share_first_step(other, SETS, 1)
    assert first_step.find(other, arm, 4) is None and other.spent.layer_tokens > 0
    assert other.passes.sizes == sizes, "what did not fit for all may fit for one"


def costs(out: Path) -> dict[str, float]:
    """Layer-tokens of every short run of a race, by its name."""
    study = optuna.load_study(study_name="autolayer", storage=f"sqlite:///{out / 'study.db'}")
    done = [trial.user_attrs for trial in study.get_trials() if "result" in trial.user_attrs]
    return {json.dumps(each["run"]): each["result"]["cost"]["layer_tokens"] for each in done}


@pytest.mark.minutes
def test_a_race_that_its_deadline_cut_goes_on_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_pick(tmp_path / "whole", until="search")
    advance, looks = study._Worker.advance, iter(range(1000))

    def late(self: Any) -> bool:
        if next(looks) == 2:
            self.deadline = 0.0
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(study._Worker, "advance", late)
        cut = short_pick(tmp_path / "cut", until="search")
    assert "time is up" in (cut.stop_reason or "") and list((tmp_path / "cut").glob("first-*"))
    short_pick(tmp_path / "cut", until="search")
    assert costs(tmp_path / "cut") == pytest.approx(costs(tmp_path / "whole"))
    assert not list((tmp_path / "cut").glob("first-*"))


@pytest.mark.minutes
def test_a_race_without_room_for_the_gradient_plans_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[RaceConfig, Outcome]] = []
    real = stages.run_search

    def watched(race: RaceConfig, *arguments: Any, **options: Any) -> Outcome:
        seen.append((race, real(race, *arguments, **options)))
        return seen[-1][1]

    monkeypatch.setattr(stages, "run_search", watched)
    monkeypatch.setattr(RunFolder, "free_bytes", lambda self: 10_000)
    for budget in (0.45, 0.5, 0.6):
        short_pick(tmp_path / str(budget), until="search", budget=budget)
    for race, outcome in seen:
        assert race.first_own is None and outcome.spent.fits(race.budget * 1.000001)
