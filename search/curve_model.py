"""What short runs have to do with the end of a full run: the assumptions of the race, in one place.

    score of an arm at step s = K g_c(s/T) (theta + rate + delta_s + seed) + noise

* theta: the candidate's contribution after T steps. Prior: the prediction, trusted by a weight that the scores judge.
* K g_c: the gain of a contribution of 1 by step s. K is the full gain in reward; g_c saturates with time constant c.
  Neither is known in a race, so values of different rungs are tied together only through them.
* delta_s: by how much an early value misleads about the final one, with variance DRIFT^2 (T/s - 1) / (1/EARLY - 1);
  a Brownian motion in T/s, so that a later value of the same arm makes the earlier one redundant, and 0 at the end.
* rate, seed: effects of a learning rate and of one training run. A maximum over rates is thereby shrunk.

The constants are rounded from few experiments: the published curve of Qwen3-1.7B (arXiv 2607.01232), LayerBench, and
six older small environments.

Array suffixes: _C candidates, _R rows of evidence, _K grid over K and c.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from autolayer.search.evidence import Evidence, EvidenceRow
from autolayer.search.records import Candidate, RaceConfig

DRIFT = 0.25
"""Spread of contributions between the layers of one model: .2-.3 in all those curves."""
EARLY = 0.25
"""Share of the full run after which an early value correlates with the final one by .71. On LayerBench each layer's
best rate after a quarter of a run has a mean rank correlation of .4 to .5 with the contribution (early.py): layers that
start fast are often not those that end high. In six older environments a tenth of a run had .6 to .94."""
RATE_SD = 0.1
"""Contribution by which rates inside the searched span differ, once they start at equal distance; and what a rate at
the span's end is expected to lose, falling with the square of the logarithm towards the starting rate."""
SEED_SD = 0.07
"""Between training runs of one arm with different seeds: .1 in the small environments, less with larger batches."""
DEPTH_CORRELATION = 0.5
"""Between errors of the prediction in neighbouring layers: contributions are smooth in depth, up to a cliff."""
DEPTH_LENGTH = 0.15
"""Share of the model's depth over which that correlation falls by a factor of e."""
TRUST = ((1.0, 0.35), (0.5, 0.3), (0.0, 0.35))
"""Weights that the prediction may deserve, and how probable each is. Every signal that was tried is useless somewhere;
in race_simulation.py more doubt costs little where the prediction is good and saves much where it is not."""
TIME_CONSTANTS = (0.05, 0.15, 0.4, 1.5)
"""Shares of the full run in which learning saturates; the last is nearly a straight line."""
FULL_GAINS = tuple(float(x) for x in 0.4 * np.exp(np.linspace(-2.0, 2.0, 9)))
"""Full gains, in standard deviations of a single reward: around .4 (10 to 20 points of accuracy near 50%)."""
FULL_GAIN_SPREAD = 1.0
"""Standard deviation of the logarithm of the full gain."""


def contribution_prior(
    config: RaceConfig, candidates: Sequence[Candidate], trust: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of theta if the prediction deserves `trust`.

    What the prediction is not trusted with comes back as variance, so that the spread over layers stays the same.
    """
    predicted_C = np.array([candidate.predicted for candidate in candidates])
    sd_C = np.array([candidate.predicted_sd for candidate in candidates])
    mean_C = predicted_C.mean() + trust * (predicted_C - predicted_C.mean())
    sd_C = np.sqrt(np.maximum(sd_C, 1e-3) ** 2 + (1 - trust**2) * predicted_C.var())
    depth_C = np.array([np.mean(candidate.layers) for candidate in candidates]) / max(1, config.num_layers)
    correlation_C_C = DEPTH_CORRELATION * np.exp(-np.abs(depth_C[:, None] - depth_C) / DEPTH_LENGTH)
    np.fill_diagonal(correlation_C_C, 1.0)
    return mean_C, sd_C[:, None] * correlation_C_C * sd_C


def deviation_covariance(config: RaceConfig, rows: Sequence[EvidenceRow]) -> np.ndarray:
    """Covariance of rate + delta + seed between rows; rate effects drift like the layers' own."""
    step_R = np.array([row.end for row in rows], dtype=float)
    later_R_R = np.minimum(np.maximum(step_R[:, None], step_R) / config.total_steps, 1.0)
    drift_R_R = (1 / later_R_R - 1) / (1 / EARLY - 1)
    layers_R_R = equality_matrix([row.layers for row in rows], [row.layers for row in rows])
    rate_R_R = equality_matrix([rate_key(row) for row in rows], [rate_key(row) for row in rows])
    arm_R_R = rate_R_R * equality_matrix([row.seed for row in rows], [row.seed for row in rows])
    return DRIFT**2 * layers_R_R * drift_R_R + RATE_SD**2 * rate_R_R * (1 + drift_R_R) + SEED_SD**2 * arm_R_R


def rate_mean(config: RaceConfig, candidate: Candidate, log_rate: float) -> float:
    """Expected contribution of a learning rate over that of the starting rate: 0 there, -RATE_SD at the span's ends."""
    if config.fixed_rate or config.rate_span == 1:
        return 0.0
    return -RATE_SD * ((log_rate - np.log(candidate.learning_rate)) / np.log(config.rate_span)) ** 2


def score_slopes(config: RaceConfig, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """K g_c for every grid point and row, and the grid points' log-probabilities (not normalised)."""
    slopes_K_R, log_prior_K = [], []
    for constant in TIME_CONSTANTS:
        shape_R = np.array([_learned(row, config.total_steps, constant) for row in evidence.rows])
        for gain in FULL_GAINS:
            slopes_K_R.append(gain * evidence.reward_sd * shape_R)
            log_prior_K.append(-0.5 * (np.log(gain / 0.4) / FULL_GAIN_SPREAD) ** 2)
    return np.array(slopes_K_R), np.array(log_prior_K)


def rate_key(row: EvidenceRow) -> tuple[tuple[int, ...], int]:
    """What two rows share if they are of one candidate at one learning rate."""
    return row.layers, row.rate_index


def equality_matrix(left: Sequence[Hashable], right: Sequence[Hashable]) -> np.ndarray:
    """Matrix of ones where the two keys are equal."""
    codes = {key: code for code, key in enumerate(dict.fromkeys([*left, *right]))}
    left_codes, right_codes = np.array([codes[k] for k in left]), np.array([codes[k] for k in right])
    return (left_codes[:, None] == right_codes).astype(float).reshape(len(left), len(right))


def _learned(row: EvidenceRow, total_steps: int, constant: float) -> float:
    """Share of the full gain learned at the row's end, or on average over the steps it covers."""
    # Rollouts of step k come from the weights after k - 1 steps.
    steps = np.array([row.end]) if row.start == row.end else np.arange(row.start, row.end)
    shares = steps / total_steps
    return float(np.mean(1 - np.exp(-shares / constant)) / (1 - np.exp(-1 / constant)))
