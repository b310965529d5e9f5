"""From finished runs to scores and the covariance of their noise.

Arms are scored on the same items, and arms of one seed train on the same prompts with the same sampling noise, so
most of the luck is shared. The covariance over items (not over arms) says how much: what is left after pairing is
what two arms can differ by chance.

Array suffixes: _R rows (one score each), _I `select` items, _P training groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.core.arms import RungResult
from autolayer.search.records import Run

SHRINKAGE = 0.1
"""Part of the estimated correlations that is taken away: with 128 items and a dozen arms they are themselves noisy."""
GROUP_OFFSET = 10.0
"""Standard deviation, in units of a reward's, of what the training prompts of a segment are worth for every arm: so
wide that only differences between the arms count."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """Whose score it is, and of which stretch of training."""

    layers: tuple[int, ...]
    rate_index: int
    log_rate: float
    """Natural logarithm of the arm's learning rate."""
    seed: int
    start: int
    """First step that the score averages over; equal to `end` for `select` scores, which are of the rung's end."""
    end: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything measured so far, in reward units."""

    rows: tuple[EvidenceRow, ...]
    score_R: np.ndarray
    noise_R_R: np.ndarray
    reward_sd: float
    """Standard deviation of a single reward: the scale on which gains are large or small."""


def gather_evidence(results: Mapping[Run, RungResult], base_select_rewards_I: Sequence[float]) -> Evidence:
    """Scores every run twice: on the `select` items over the base model, and on its last training groups.

    Training rewards lag behind, by the same steps for all arms of a rung, and there is no base score for their
    prompts: they count as differences within one rung and seed only.
    """
    base_I = np.asarray(base_select_rewards_I, dtype=float)
    rewards = np.concatenate([base_I, *(r.select_rewards_I for r in results.values())])
    reward_sd = float(np.std(rewards)) if rewards.size and np.std(rewards) > 0 else 1.0
    blocks = [_select_block(results, base_I, reward_sd)] if results else []
    blocks += [
        block
        for step, seed in dict.fromkeys((run.to_step, run.slot.seed) for run in results)
        if (block := _train_block(_runs_of_rung(results, step, seed), reward_sd))
    ]
    rows = tuple(row for block in blocks for row in block[0])
    noise_R_R = np.zeros((len(rows), len(rows)))
    at = 0
    # `select` and training prompts are disjoint: no covariance between blocks.
    for block_rows, _, block_noise in blocks:
        noise_R_R[at : at + len(block_rows), at : at + len(block_rows)] = block_noise
        at += len(block_rows)
    score_R = np.concatenate([block[1] for block in blocks]) if blocks else np.zeros(0)
    return Evidence(rows=rows, score_R=score_R, noise_R_R=noise_R_R, reward_sd=reward_sd)


def check_result(run: Run, result: RungResult, base_select_rewards_I: Sequence[float]) -> None:
    """Refuses what could not be compared.

    Raises:
        ValueError: The result is of another arm or step, or does not hold one finite reward per `select` item.
    """
    if (result.arm.layers, result.arm.seed, result.arm.step) != (run.slot.layers, run.slot.seed, run.to_step):
        raise ValueError(f"{run.key} was answered by {result.arm.key} at step {result.arm.step}")
    if len(result.select_rewards_I) != len(base_select_rewards_I):
        raise ValueError(f"{len(result.select_rewards_I)} rewards for {len(base_select_rewards_I)} select items")
    if not np.isfinite(result.select_rewards_I).all() or not np.isfinite(result.train_rewards_P).all():
        raise ValueError("a reward is not finite")


def paired_gain(result: RungResult, base_select_rewards_I: Sequence[float]) -> tuple[float, float]:
    """Returns the mean gain over the base model on the same items, and its standard error."""
    base_I = np.asarray(base_select_rewards_I, dtype=float)
    gain_I = np.asarray(result.select_rewards_I, dtype=float) - base_I
    min_error = float(np.std(np.array([base_I, result.select_rewards_I]))) / len(gain_I)
    error = float(np.std(gain_I, ddof=1)) / np.sqrt(len(gain_I)) if len(gain_I) > 1 else min_error
    return float(gain_I.mean()), max(float(error), min_error)


Block = tuple[list[EvidenceRow], np.ndarray, np.ndarray]


def _select_block(results: Mapping[Run, RungResult], base_I: np.ndarray, reward_sd: float) -> Block:
    gain_R_I = np.array([result.select_rewards_I for result in results.values()], dtype=float) - base_I
    rows = [_row(run, result, run.to_step) for run, result in results.items()]
    return rows, gain_R_I.mean(axis=1), _noise_of_mean(gain_R_I, reward_sd)


def _runs_of_rung(results: Mapping[Run, RungResult], step: int, seed: int) -> dict[Run, RungResult]:
    return {run: r for run, r in results.items() if (run.to_step, run.slot.seed) == (step, seed) and r.train_rewards_P}


def _train_block(results: Mapping[Run, RungResult], reward_sd: float) -> Block | None:
    if len(results) < 2:
        return None
    # An arm that joined late ran from step 0 in one go: only the steps that all arms just made are common.
    # The first step's rollouts are the base model's, the same for all of them.
    start = max(1, *(run.from_step for run in results))
    num_groups = min(
        round(len(r.train_rewards_P) * (run.to_step - start) / (run.to_step - run.from_step))
        for run, r in results.items()
    )
    if num_groups < 2:
        return None
    reward_R_P = np.array([result.train_rewards_P[-num_groups:] for result in results.values()], dtype=float)
    noise = _noise_of_mean(reward_R_P, reward_sd) + (GROUP_OFFSET * reward_sd) ** 2
    mean_R = reward_R_P.mean(axis=1)
    return [_row(run, result, start) for run, result in results.items()], mean_R - mean_R.mean(), noise


def _row(run: Run, result: RungResult, start: int) -> EvidenceRow:
    return EvidenceRow(
        layers=run.slot.layers,
        rate_index=run.slot.rate_index,
        log_rate=math.log(result.arm.learning_rate),
        seed=run.slot.seed,
        start=start,
        end=run.to_step,
    )


def _noise_of_mean(value_R_I: np.ndarray, reward_sd: float) -> np.ndarray:
    """Returns the covariance of the rows' means, shape (R, R).

    Correlations are shrunk, and no variance is below that of one odd item.
    """
    num_items = value_R_I.shape[1]
    centred_R_I = value_R_I - value_R_I.mean(axis=1, keepdims=True)
    sum_R_R = centred_R_I @ centred_R_I.T
    covariance_R_R = (1 - SHRINKAGE) * sum_R_R / max(1, num_items - 1)
    variance_R = np.diag(sum_R_R) / max(1, num_items - 1)
    np.fill_diagonal(covariance_R_R, np.maximum(variance_R, reward_sd**2 / num_items))
    return covariance_R_R / num_items
