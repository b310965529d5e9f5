"""Calibration names the reason why there is no signal, on models and tasks made for each reason."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, build_model, build_tokenizer
from torch import nn
from workbench_helpers import Untouched, make_bench, make_task

from autolayer.core.errors import ModelError, NoSignalError
from autolayer.training.calibration import CURES, Calibration, calibrate, judge, refuse
from autolayer.training.workbench import Workbench

MAX_NEW_TOKENS = 6


def _scripted(script: dict[str, str]) -> Any:
    """A real model that continues a character by any of the given ones alike, and every other one by an end.

    Its blocks add nothing, embeddings are orthogonal, and the head maps a character to what may follow it.
    """
    model = build_model("qwen3", num_layers=2, hidden=128)
    ids = build_tokenizer().get_vocab()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        embedding = nn.init.orthogonal_(model.model.embed_tokens.weight)
        model.lm_head.weight.zero_()
        followers = {
            ids[character]: [ids["<eos>" if c == "$" else c] for c in after] for character, after in script.items()
        }
        for token in range(VOCABULARY):
            for after in followers.get(token, [ids["<eos>"]]):
                model.lm_head.weight[after] += 2 * embedding[token]  # times sqrt(128), by the final norm
    return model


def _calibrate(
    model: Any, reward: Callable[[str], float], folder: Path, *, digits_only: bool = True
) -> tuple[Workbench, Calibration]:
    def scored(prompts: list, completions: list[str], **_: Any) -> list[float]:
        return [reward(text) for text in completions]

    task = make_task(scored, max_new_tokens=MAX_NEW_TOKENS, is_well_formed=str.isdigit if digits_only else None)
    bench = make_bench(model, folder, task, group_size=8)
    before = Untouched(model)
    calibration, rollouts = calibrate(bench, 16, 0)
    before.check()
    assert calibration.num_completions == len(rollouts.rewards) == 128
    return bench, calibration


CASES: dict[str, tuple[dict[str, str], Callable[[str], float]]] = {
    "": ({"=": "78"}, lambda text: float(text == "7")),
    "saturated": ({"=": "7"}, lambda text: float(text == "7")),
    "truncated": ({"=": "x", "x": "xy", "y": "xy"}, lambda text: float(text == "7")),
    "badly formatted": ({"=": "xyz"}, lambda text: float(text == "7")),
    "too hard": ({"=": "123"}, lambda text: float(text == "7")),
}


@pytest.mark.parametrize("reason", CASES)
def test_each_reason_is_told_from_the_others(reason: str, tmp_path: Path) -> None:
    script, reward = CASES[reason]
    _, calibration = _calibrate(_scripted(script), reward, tmp_path)
    assert (calibration.status, calibration.reason) == ("no_signal" if reason else "ok", reason)
    assert calibration.truncated == pytest.approx(float(reason == "truncated"), abs=0.05)
    assert calibration.well_formed == pytest.approx(float(reason in ("", "saturated", "too hard")), abs=0.05)
    assert calibration.mean_reward == pytest.approx({"": 0.5, "saturated": 1.0}.get(reason, 0.0), abs=0.15)
    assert calibration.spread == pytest.approx(float(not reason), abs=0.05)
    assert calibration.mean_prompt_tokens == pytest.approx(4, abs=1) and calibration.mean_completion_tokens >= 1.9


def test_a_random_model_on_a_task_that_it_hardly_ever_solves_is_told_that_it_is_too_hard(tmp_path: Path) -> None:
    model = build_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
    _, calibration = _calibrate(model, lambda text: float(text.startswith("777")), tmp_path)
    assert calibration.reason == "too hard" and calibration.entropy > 0.9
    assert calibration.truncated > 0.5 and (calibration.well_formed or 0) < 0.2  # which it must not be blamed for


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (-1.0, 1.0)])
def test_a_rare_failure_does_not_hide_that_the_task_is_done(lowest: float, highest: float, tmp_path: Path) -> None:
    bench, calibration = _calibrate(_scripted({"=": "7"}), lambda text: highest, tmp_path)
    assert calibration.reason == "saturated"
    _, rollouts = calibrate(bench, 24, 0)
    rewards = [lowest, *rollouts.rewards[1:]]
    found = judge(bench, replace(rollouts, rewards=rewards))
    assert found.spread == pytest.approx(1 / 24) and found.reason == "saturated"
    found = judge(bench, replace(rollouts, rewards=[lowest, *rollouts.rewards[1:40], lowest, *rollouts.rewards[41:]]))
    assert found.spread == pytest.approx(2 / 24) and found.status == "ok"


def test_without_a_format_check_nothing_is_said_about_the_format(tmp_path: Path) -> None:
    _, calibration = _calibrate(_scripted({"=": "xyz"}), lambda text: 0.0, tmp_path, digits_only=False)
    assert calibration.well_formed is None and calibration.reason == "too hard"
    assert "look like" not in calibration.sentence()


def test_the_entropy_is_that_of_the_sampled_distribution(tmp_path: Path) -> None:
    _, sharp = _calibrate(_scripted({"=": "7"}), lambda text: 0.0, tmp_path)
    assert sharp.entropy < 0.05
    flat = build_model("qwen3")
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    _, noise = _calibrate(flat, lambda text: 0.0, tmp_path)
    assert noise.entropy == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("reason", [reason for reason in CASES if reason])
def test_the_refusal_has_the_numbers_and_the_cure(reason: str, tmp_path: Path) -> None:
    script, reward = CASES[reason]
    bench, calibration = _calibrate(_scripted(script), reward, tmp_path)
    error = refuse(calibration, bench.task)
    assert isinstance(error, NoSignalError)
    for part in (
        "task test",
        reason,
        CURES[reason],
        "128 completions",
        f"{calibration.mean_reward:.3f}",
        "token limit",
    ):
        assert part in str(error)
    assert len(set(CURES.values())) == 4


def test_the_same_seed_gives_the_same_verdict_and_completions(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3"), tmp_path)
    first, second, other = (calibrate(bench, 6, seed) for seed in (0, 0, 1))
    assert first == second and first[1].completion_ids != other[1].completion_ids
    assert Calibration(**asdict(first[0])) == first[0]


def test_a_weight_that_only_some_prompts_reach_is_damaged(tmp_path: Path) -> None:
    model = build_model("qwen3", num_layers=2)
    model.model.embed_tokens.weight.data[build_tokenizer().get_vocab()["="]] = float("inf")
    with pytest.raises(ModelError, match="computes probabilities that are not finite for the task's prompts"):
        _calibrate(model, lambda text: float(len(text)), tmp_path)
