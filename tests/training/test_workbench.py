"""Arms do not leak into one another or into the base, and training cut anywhere goes on bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model
from workbench_helpers import Untouched, assert_equal, differing, make_bench, make_task, mean_id

from autolayer.core.arms import Arm
from autolayer.core.errors import AutolayerError, RewardError
from autolayer.core.layer_set import Layers
from autolayer.rollouts.rollouts import request_seed
from autolayer.tasks.base import SPLITS
from autolayer.training import out_of_memory
from autolayer.training.scored_passes import computed
from autolayer.training.train_arm import TrainedArm, train_arm, train_rows
from autolayer.training.workbench import Workbench

LR = 1e-3


class FailingReward:
    """Rewards like `mean_id`, and raises once, at its n-th call."""

    def __init__(self, call: int, error: type[BaseException]) -> None:
        self.left, self.error = call, error

    def __call__(self, prompts: list, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        self.left -= 1
        if self.left == 0:
            raise self.error("stop")
        return mean_id(prompts, completion_ids)


def _state(bench: Workbench, arm: Arm) -> dict[str, torch.Tensor]:
    return bench.checkpoints.read(arm)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batch_tokens": 40},
    "micro-batches, uneven prompts": {"micro_batch_tokens": 120, "uneven": True},
    "dr_grpo": {"algorithm": "dr_grpo"},
    "bf16, kl, micro-batches": {"dtype": torch.bfloat16, "beta": 0.2, "micro_batch_tokens": 40},
    "experts": {"architecture": "qwen3_moe"},
    "full": {"layers": "full"},
}


@pytest.mark.parametrize(
    "variant", [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_cut_or_interrupted_training_goes_on_bit_for_bit(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"architecture": "qwen3", "dtype": torch.float32, "layers": (1,), **VARIANTS[variant]}
    layers: Layers = options.pop("layers")
    architecture, dtype = options.pop("architecture"), options.pop("dtype")
    uneven = options.pop("uneven", False)
    if tokens := options.pop("micro_batch_tokens", 0):
        monkeypatch.setattr(out_of_memory, "TOKENS", tokens)

    def fresh(folder: str, reward: Callable[..., Any] = mean_id) -> Workbench:
        model = build_model(architecture, num_layers=3, dtype=dtype)
        texts = [f"{i}+" + "1" * (1 + i * i % 23) for i in range(24)] if uneven else []
        prompts = {name: [name + text for text in texts] for name in SPLITS} if uneven else None
        return make_bench(model, tmp_path / folder, make_task(reward, prompts=prompts), **options)

    start = Arm(layers=layers, learning_rate=LR, seed=3)
    whole_bench = fresh("whole")
    whole = train_arm(whole_bench, start, 4)
    assert len(whole.train_rewards_P) == 16 and differing(
        whole_bench.arm_weights(whole.arm) or {}, whole_bench.base(layers)
    )

    first = train_arm(fresh("cut"), start, 2)
    interrupted = fresh("cut", FailingReward(2, KeyboardInterrupt))
    before = Untouched(interrupted.model)
    with pytest.raises(KeyboardInterrupt):
        train_arm(interrupted, first.arm, 4)
    before.check()
    second_bench = fresh("cut")
    second = train_arm(second_bench, first.arm, 4)

    assert second.arm == whole.arm
    assert first.train_rewards_P + second.train_rewards_P == whole.train_rewards_P
    assert_equal(_state(second_bench, second.arm), _state(whole_bench, whole.arm))
    assert (
        second_bench.evaluate("select", 8, seed=0, arm=second.arm).rewards_I
        == whole_bench.evaluate("select", 8, seed=0, arm=whole.arm).rewards_I
    )


def test_steps_are_kept_when_time_is_up_and_when_a_reward_fails(tmp_path: Path) -> None:
    start = Arm(layers=(1,), learning_rate=LR, seed=3)
    whole_bench = make_bench(build_model("qwen3"), tmp_path / "whole")
    whole = train_arm(whole_bench, start, 6)
    bench = make_bench(build_model("qwen3"), tmp_path / "cut", make_task(FailingReward(4, RuntimeError)))
    first = train_arm(bench, start, 6, seconds=0.0)
    assert first.arm.step == 1, "one step is always made"
    with pytest.raises(RewardError, match="stop"):
        train_arm(bench, first.arm, 6)
    reached = bench.checkpoints.latest(first.arm)
    assert reached.step == 3
    rest = train_arm(bench, reached, 6)
    assert bench.checkpoints.training_rewards(rest.arm, 0) == whole.train_rewards_P
    assert_equal(_state(bench, rest.arm), _state(whole_bench, whole.arm))
    assert bench.checkpoints.cost(rest.arm).generated_tokens == whole.cost.generated_tokens


@pytest.mark.slow
def test_training_goes_on_in_the_process_that_was_interrupted(tmp_path: Path) -> None:
    task = make_task(FailingReward(3, KeyboardInterrupt))
    bench = make_bench(build_model("qwen3"), tmp_path / "a", task)
    start = Arm(layers=(2,), learning_rate=LR, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train_arm(bench, start, 4)
    again = train_arm(bench, start, 4)
    other = make_bench(build_model("qwen3"), tmp_path / "b")
    assert_equal(_state(bench, again.arm), _state(other, train_arm(other, start, 4).arm))


@pytest.mark.slow
@pytest.mark.parametrize(("earlier", "beta"), [(((2,),), 0.0), (((0, 1), (1, 3)), 0.2), (("full",), 0.2)], ids=str)
def test_arms_trained_before_change_nothing_for_the_next_one(
    earlier: tuple[Layers, ...], beta: float, tmp_path: Path
) -> None:
    def record(bench: Workbench) -> list[list[list[int]]]:
        completions: list[Any] = []
        generate = bench.engine.generate

        def spy(prompt_ids: list[list[int]], seeds: Any) -> Any:
            completions.append(generate(prompt_ids, seeds))
            return completions[-1]

        bench.engine.generate = spy  # pyright: ignore
        return completions

    def run(bench: Workbench) -> tuple[list[list[list[int]]], TrainedArm, tuple[float, ...], dict[str, torch.Tensor]]:
        completions = record(bench)
        trained = train_arm(bench, Arm(layers=(2,), learning_rate=LR, seed=1), 3)
        scores = bench.evaluate("select", 10, seed=4, arm=trained.arm).rewards_I
        return completions, trained, scores, _state(bench, trained.arm)

    alone = run(make_bench(build_model("qwen3"), tmp_path / "alone", beta=beta))
    bench = make_bench(build_model("qwen3"), tmp_path / "shared", beta=beta)
    before = Untouched(bench.model)
    base_scores = bench.evaluate("select", 10, seed=4).rewards_I
    for layers in earlier:
        trained = train_arm(bench, Arm(layers=layers, learning_rate=10 * LR, seed=9), 3).arm
        assert bench.evaluate("select", 10, seed=4, arm=trained).rewards_I != base_scores
    after = run(bench)
    assert after[0] == alone[0] and after[2] == alone[2]
    assert after[1].train_rewards_P == alone[1].train_rewards_P
    assert_equal(after[3], alone[3])
    assert bench.evaluate("select", 10, seed=4).rewards_I == base_scores
    before.check()


@pytest.mark.parametrize(
    ("layers", "error", "call"), [((1,), KeyboardInterrupt, 2), ((1,), ValueError, 1), ("full", ValueError, 2)], ids=str
)
def test_an_error_in_the_reward_leaves_the_base(
    layers: Layers, error: type[BaseException], call: int, tmp_path: Path
) -> None:
    bench = make_bench(build_model("qwen3", dtype=torch.bfloat16), tmp_path, make_task(FailingReward(call, error)))
    before = Untouched(bench.model)
    with pytest.raises((KeyboardInterrupt, AutolayerError), match="stop"):
        train_arm(bench, Arm(layers=layers, learning_rate=LR, seed=0), 3)
    before.check()
    # Ctrl-C may come in the middle of a step; where the reward failed, the steps before it are saved.
    assert bool(list(tmp_path.rglob("*.safetensors"))) == (error is ValueError and call > 1)


def test_an_error_while_a_trained_arm_is_evaluated_leaves_the_base(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path, make_task(FailingReward(3, KeyboardInterrupt)))
    before = Untouched(bench.model)
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=LR, seed=0), 2).arm
    with pytest.raises(KeyboardInterrupt):
        bench.evaluate("select", 8, seed=0, arm=arm)
    before.check()


def test_a_training_that_diverges_raises_and_leaves_the_base(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    before = Untouched(bench.model)
    with pytest.raises(AutolayerError, match="--learning-rate"):
        train_arm(bench, Arm(layers=(1,), learning_rate=1e30, seed=0), 4)
    before.check()


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo"])
def test_steps_without_any_advantage_are_no_error(algorithm: str, tmp_path: Path) -> None:
    task = make_task(lambda prompts, **_: [0.1] * len(prompts))  # six times .1 has a variance, by rounding
    bench = make_bench(build_model("qwen3"), tmp_path, task, group_size=6, algorithm=algorithm)
    trained = train_arm(bench, Arm(layers=(1,), learning_rate=1e-12, seed=0), 2)
    assert trained.arm.step == 2 and trained.train_rewards_P == pytest.approx([0.1] * 8)


def test_every_change_of_the_weights_is_told_to_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    told: list[set[str]] = []
    monkeypatch.setattr(bench.engine, "mark_changed", lambda names: told.append(set(names)))
    arm = train_arm(bench, Arm(layers=(1,), learning_rate=LR, seed=0), 1).arm
    assert told == [set(bench.parameters((1,)))] * 2  # the step, and the base again
    bench.evaluate("select", 4, seed=0)
    assert len(told) == 2
    bench.evaluate("select", 4, seed=0, arm=arm)
    assert len(told) == 4  # the arm's weights in, the base's in again


def test_base_and_arm_are_evaluated_on_the_same_items_with_the_same_noise(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    barely = train_arm(bench, Arm(layers=(1,), learning_rate=1e-12, seed=0), 1).arm
    base = bench.evaluate("select", 12, seed=5).rewards_I
    assert len(base) == 12 and len(set(base)) > 6
    assert bench.evaluate("select", 12, seed=5, arm=barely).rewards_I == base
    assert bench.evaluate("select", 7, seed=5).rewards_I == base[:7]
    assert (
        bench.evaluate("select", 12, seed=6).rewards_I != base and bench.evaluate("eval", 12, seed=5).rewards_I != base
    )


def test_training_moves_the_reward_up(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path, prompts_per_step=8, group_size=8)
    rewards: list[float] = []
    trained = train_arm(bench, Arm(layers=(2,), learning_rate=1e-2, seed=0), 12, on_step=rewards.append)
    assert len(rewards) == 12
    assert rewards == pytest.approx([sum(trained.train_rewards_P[i : i + 8]) / 8 for i in range(0, 96, 8)])
    base, after = (
        bench.evaluate("eval", 24, seed=0).rewards_I,
        bench.evaluate("eval", 24, seed=0, arm=trained.arm).rewards_I,
    )
    assert sum(after) / 24 > sum(base) / 24 + 0.05


def test_the_bill_lists_every_token_once(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path, beta=0.1)
    assert bench.scorer.starts_midway, "tested once, and not charged"
    before = computed(bench.model)
    trained = train_arm(bench, Arm(layers=(2,), learning_rate=LR, seed=0), 3)
    rows = train_rows(bench, 0, 0, 3)
    read = sum(len(row["prompt"]) for row in rows)  # one token for each character, once for a prompt's completions
    generated = trained.cost.generated_tokens
    assert generated == bench.engine.tokens
    size = (computed(bench.model) - before) * 0.5  # the policy's passes and the reference's
    assert read <= size.tokens < 4 * read + generated and 0 < size.scored <= generated
    depth, head = bench.costs.num_layers, bench.costs.head_ratio
    expected = (
        read * depth
        + generated * (depth + head)
        + size.tokens * (depth + (depth - 2) + 1)
        + size.scored * 2 * head
        + size.tokens * (depth - 2)  # the reference, and no second pass through the two layers below
        + size.scored * head
    )
    assert trained.cost.layer_tokens == pytest.approx(expected)
    assert bench.spent == trained.cost == bench.checkpoints.cost(trained.arm)
    further = train_arm(bench, trained.arm, 4)
    assert bench.checkpoints.cost(further.arm).layer_tokens == pytest.approx(bench.spent.layer_tokens)
    before = bench.spent
    bench.evaluate("eval", 6, seed=0)
    assert (bench.spent - before).generated_tokens == bench.engine.tokens - before.generated_tokens > 0
    all_passes = size.tokens * (depth * 3 - 3) + size.scored * 3 * head
    assert bench.account.training_layer_tokens > all_passes, "the further step"
    assert bench.account.training_layer_tokens < bench.checkpoints.cost(further.arm).layer_tokens, "without sampling"
    one = depth + head
    bench.engine.seconds = 0.0
    assert bench.account.exchange_rate(bench.engine) == 1.0, "a generated token is a forward pass at the least"
    bench.engine.seconds = 4.0 * bench.engine.tokens
    bench.account.training_seconds = bench.account.training_layer_tokens / one
    assert bench.account.exchange_rate(bench.engine) == pytest.approx(4.0)


def test_groups_are_sampled_in_prompt_order_with_their_rewards(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    rows = bench.task.splits["probe"][:3]
    rollouts = bench.sample(rows, [request_seed(i) for i in range(6)], 2)
    assert ["".join(bench.tokenizer.convert_ids_to_tokens(ids)) for ids in rollouts.prompt_ids] == [
        row["prompt"] for row in rows for _ in range(2)
    ]
    assert rollouts.rewards == mean_id([], rollouts.completion_ids)
    assert rollouts.texts == bench.tokenizer.batch_decode(rollouts.completion_ids, skip_special_tokens=True)
