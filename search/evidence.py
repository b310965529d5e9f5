"""From finished runs to scores and the covariance of their noise.

Arms are scored on the same items, and arms of one seed train on the same prompts with the same sampling noise, so
most of the luck is shared. The covariance over items (not over arms) says how much: what is left after pairing is
what two arms can differ by chance. An arm whose evaluation was stopped (`looks`) has fewer items, the first ones: a
score like any other, with more noise.

Array suffixes: _R rows (one score each), _I `select` items, _P training groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.core.arms import RungResult
from autolayer.search.looks import looks
from autolayer.search.records import Run

SHRINKAGE = 0.1
"""Part of the estimated correlations that is taken away: with 128 items and a dozen arms they are themselves noisy."""
OFFSET = 10.0
"""Standard deviation, in units of a reward's, of what the training prompts of a segment are worth for every arm: so
wide that only differences between the arms count."""


@dataclass(frozen=True, kw_only=True)
class Row:
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

    rows: tuple[Row, ...]
    score_R: np.ndarray
    noise_R_R: np.ndarray
    reward_sd: float
    """Standard deviation of a single reward: the scale on which gains are large or small."""


def gather(results: Mapping[Run, RungResult], base_select_rewards_I: Sequence[float]) -> Evidence:
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
        if (block := _train_block(_segment(results, step, seed), reward_sd))
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


def check(run: Run, result: RungResult, base_select_rewards_I: Sequence[float]) -> None:
    """Refuses what could not be compared.

    Raises:
        ValueError: The result is of another arm or step, or does not hold one finite reward per `select` item, all of
            them or as many as there are at a look.
    """
    if (result.arm.layers, result.arm.seed, result.arm.step) != (run.slot.layers, run.slot.seed, run.to_step):
        raise ValueError(f"{run.key} was answered by {result.arm.key} at step {result.arm.step}")
    if len(result.select_rewards_I) not in (*looks(len(base_select_rewards_I)), len(base_select_rewards_I)):
        raise ValueError(f"{len(result.select_rewards_I)} rewards for {len(base_select_rewards_I)} select items")
    if not np.isfinite(result.select_rewards_I).all() or not np.isfinite(result.train_rewards_P).all():
        raise ValueError("a reward is not finite")


def paired_gain(result: RungResult, base_select_rewards_I: Sequence[float]) -> tuple[float, float]:
    """Mean gain over the base model on the same items, as far as the arm was evaluated, and its standard error."""
    base_I = np.asarray(base_select_rewards_I[: len(result.select_rewards_I)], dtype=float)
    gain_I = np.asarray(result.select_rewards_I, dtype=float) - base_I
    floor = float(np.std(np.array([base_I, result.select_rewards_I]))) / len(gain_I)
    error = float(np.std(gain_I, ddof=1)) / np.sqrt(len(gain_I)) if len(gain_I) > 1 else floor
    return float(gain_I.mean()), max(float(error), floor)


Block = tuple[list[Row], np.ndarray, np.ndarray]


def _select_block(results: Mapping[Run, RungResult], base_I: np.ndarray, reward_sd: float) -> Block:
    rewards = [np.asarray(result.select_rewards_I, dtype=float) for result in results.values()]
    gains = [rewards_I - base_I[: len(rewards_I)] for rewards_I in rewards]
    rows = [_row(run, result, run.to_step) for run, result in results.items()]
    return rows, np.array([gain_I.mean() for gain_I in gains]), _noise_of_mean(gains, reward_sd)


def _segment(results: Mapping[Run, RungResult], step: int, seed: int) -> dict[Run, RungResult]:
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
    noise = _noise_of_mean(reward_R_P, reward_sd) + (OFFSET * reward_sd) ** 2
    mean_R = reward_R_P.mean(axis=1)
    return [_row(run, result, start) for run, result in results.items()], mean_R - mean_R.mean(), noise


def _row(run: Run, result: RungResult, start: int) -> Row:
    return Row(
        layers=run.slot.layers,
        rate_index=run.slot.rate_index,
        log_rate=math.log(result.arm.learning_rate),
        seed=run.slot.seed,
        start=start,
        end=run.to_step,
    )


def _noise_of_mean(values: Sequence[np.ndarray], reward_sd: float) -> np.ndarray:
    """Covariance of the rows' means, with correlations shrunk and no variance below that of one odd item.

    Rows may end early. Means of n and m items that are the first of the same share the covariance of one item over
    max(n, m): as a matrix min(1/n, 1/m), which is that of a Brownian motion at the times 1/n, so its product with
    another covariance, entry by entry, is a covariance.
    """
    num_R = np.array([len(row) for row in values])
    sd_R = np.array([np.std(row, ddof=min(1, len(row) - 1)) for row in values])
    covariance = (1 - SHRINKAGE) * sd_R[:, None] * _correlation(values, num_R) * sd_R
    np.fill_diagonal(covariance, np.maximum(sd_R**2, reward_sd**2 / num_R))
    return covariance / np.maximum(num_R[:, None], num_R)


def _correlation(values: Sequence[np.ndarray], num_R: np.ndarray) -> np.ndarray:
    """Each pair of rows by all items that both have: one row that ends early blurs no other pair."""
    correlation = np.eye(len(num_R))
    lengths = sorted(set(num_R.tolist()))
    for num_items in lengths:  # what more items say replaces what fewer did
        rows = np.flatnonzero(num_R >= num_items)
        cut_R_I = np.array([values[row][:num_items] for row in rows])
        centred_R_I = cut_R_I - cut_R_I.mean(axis=1, keepdims=True)
        length_R = np.sqrt((centred_R_I**2).sum(axis=1, keepdims=True))
        unit_R_I = centred_R_I / np.where(length_R > 0, length_R, 1.0)
        correlation[np.ix_(rows, rows)] = unit_R_I @ unit_R_I.T
    if len(lengths) == 1:
        return correlation
    # Put together from several estimates it need not be a correlation matrix: one that is lies near.
    variance_K, axes_R_K = np.linalg.eigh(correlation)
    near = (axes_R_K * np.maximum(variance_K, 0.0)) @ axes_R_K.T
    sd_R = np.sqrt(np.diag(near))
    sd_R = np.where(sd_R > 0, sd_R, 1.0)
    return near / sd_R[:, None] / sd_R
