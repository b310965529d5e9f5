"""Turns finished runs into scores and the covariance of the scores' noise.

All arms are scored on the same items, and arms of one seed train on the same prompts with the same sampling noise, so
their scores share most of their noise. The covariance over items estimates the shared part; the rest is the noise of a
difference between two arms.

Array suffixes: _R rows (one score each), _I `select` items, _P training groups.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from autolayer.core.arms import RungResult
from autolayer.search.records import Run, Slot

SHRINKAGE = 0.1
"""Share by which estimated correlations are shrunk. With 128 items and a dozen arms they are noisy themselves."""
GROUP_OFFSET = 10.0
"""Standard deviation of a common offset of all training scores of a rung and seed, in standard deviations of a reward.
It is so wide that only differences between the arms count."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """Identifies a score: the arm, and the training steps that it covers."""

    slot: Slot
    log_rate: float
    start: int
    """First training step that the score averages over; `end` for a `select` score, taken after `end` steps."""
    end: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores, shape (R,), and the covariance of their noise, shape (R, R), in units of reward.

    A part of the evidence holds all `select` scores, or the training scores of one rung and seed.
    """

    rows: tuple[EvidenceRow, ...]
    score_R: np.ndarray
    noise_R_R: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Evidence(Scores):
    """All scores measured so far."""

    reward_sd: float
    """Standard deviation of a single reward, the scale of the full gain's prior."""


def gather_evidence(results: Mapping[Run, RungResult], base_select_rewards_I: Sequence[float]) -> Evidence:
    """Scores every run twice: by its gain over the base model on the `select` items, and by its training rewards.

    Training rewards have no base score on the same prompts and lag behind the rung's end, by the same steps for all
    its arms. They therefore count only as differences within one rung and seed.
    """
    base_I = np.asarray(base_select_rewards_I, dtype=float)
    rewards = np.concatenate([base_I, *(r.select_rewards_I for r in results.values())])
    reward_sd = float(np.std(rewards)) if rewards.size and np.std(rewards) > 0 else 1.0
    parts = [_select_scores(results, base_I, reward_sd)] if results else []
    rungs = dict.fromkeys((run.to_step, run.slot.seed) for run in results)
    parts += [part for rung in rungs if (part := _train_scores(results, rung, reward_sd))]
    return Evidence(
        rows=tuple(row for part in parts for row in part.rows),
        score_R=np.concatenate([np.zeros(0), *(part.score_R for part in parts)]),
        # `select` and training prompts are disjoint: no covariance between the parts.
        noise_R_R=np.asarray(scipy.linalg.block_diag(np.zeros((0, 0)), *(part.noise_R_R for part in parts))),
        reward_sd=reward_sd,
    )


def check_result(run: Run, result: RungResult, base_select_rewards_I: Sequence[float]) -> None:
    """Raises a ValueError if a result is of another arm or step, or lacks one finite reward per `select` item."""
    if (result.arm.layers, result.arm.seed, result.arm.step) != (run.slot.layers, run.slot.seed, run.to_step):
        raise ValueError(f"the run {run.key} returned the arm {result.arm.key} at step {result.arm.step}")
    if len(result.select_rewards_I) != len(base_select_rewards_I):
        raise ValueError(f"{len(result.select_rewards_I)} rewards for {len(base_select_rewards_I)} select items")
    if not np.isfinite(result.select_rewards_I).all() or not np.isfinite(result.train_rewards_P).all():
        raise ValueError("a reward is not finite")


@dataclass(frozen=True, kw_only=True)
class PairedGain:
    """Mean gain in reward over the base model on the same items, and its standard error."""

    mean: float
    error: float


def paired_gain(result: RungResult, base_select_rewards_I: Sequence[float]) -> PairedGain:
    """Returns the gain of a run over the base model on the `select` items."""
    base_I = np.asarray(base_select_rewards_I, dtype=float)
    gain_I = np.asarray(result.select_rewards_I, dtype=float) - base_I
    min_error = float(np.std(np.array([base_I, result.select_rewards_I]))) / len(gain_I)
    error = float(np.std(gain_I, ddof=1)) / np.sqrt(len(gain_I)) if len(gain_I) > 1 else min_error
    return PairedGain(mean=float(gain_I.mean()), error=max(float(error), min_error))


def _select_scores(results: Mapping[Run, RungResult], base_I: np.ndarray, reward_sd: float) -> Scores:
    gain_R_I = np.array([result.select_rewards_I for result in results.values()], dtype=float) - base_I
    rows = tuple(_row(run, result, start=run.to_step) for run, result in results.items())
    return Scores(rows=rows, score_R=gain_R_I.mean(axis=1), noise_R_R=_noise_of_mean(gain_R_I, reward_sd))


def _train_scores(results: Mapping[Run, RungResult], rung: tuple[int, int], reward_sd: float) -> Scores | None:
    """Returns the training scores of a rung (its last step and seed), or None if there is nothing to compare."""
    results = {run: r for run, r in results.items() if (run.to_step, run.slot.seed) == rung and r.train_rewards_P}
    if len(results) < 2:
        return None
    # An arm that joined late started at step 0, so only the last steps are common to all arms.
    # The rollouts of the first step come from the base model and are the same for all arms.
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
    rows = tuple(_row(run, result, start) for run, result in results.items())
    return Scores(rows=rows, score_R=mean_R - mean_R.mean(), noise_R_R=noise)


def _row(run: Run, result: RungResult, start: int) -> EvidenceRow:
    return EvidenceRow(slot=run.slot, log_rate=math.log(result.arm.learning_rate), start=start, end=run.to_step)


def _noise_of_mean(value_R_I: np.ndarray, reward_sd: float) -> np.ndarray:
    """Returns the covariance (R, R) of the rows' means, at least that of one item that differs by `reward_sd`."""
    num_items = value_R_I.shape[1]
    centred_R_I = value_R_I - value_R_I.mean(axis=1, keepdims=True)
    sum_R_R = centred_R_I @ centred_R_I.T
    covariance_R_R = (1 - SHRINKAGE) * sum_R_R / max(1, num_items - 1)
    variance_R = np.diag(sum_R_R) / max(1, num_items - 1)
    np.fill_diagonal(covariance_R_R, np.maximum(variance_R, reward_sd**2 / num_items))
    return covariance_R_R / num_items
