"""Models how the score of a short run relates to the contribution after a full run of T steps.

    score of an arm at step s = K g_c(s/T) (theta + rate + delta_s + seed) + noise
    g_c(x) = (1 - exp(-x/c)) / (1 - exp(-1/c))

* theta is the candidate's contribution after T steps. Its prior is the prediction, weighted by a trust that is inferred
  from the scores.
* K is the full gain in reward and c the time constant of learning, so K g_c(s/T) is the gain at step s of a
  contribution of 1. Both are unknown and shared by all arms; only they relate the scores of different rungs.
* delta_s is the error of an early score about the final one, with variance DRIFT^2 (T/s - 1) / (1/EARLY - 1). It is a
  Brownian motion in T/s that ends at 0: given a later score of an arm, its earlier ones add no information.
* rate and seed are the effects of a learning rate and of one training run. Because they are modelled, the best of
  several rates is shrunk towards the mean.

The constants are rounded from few experiments: the published curve of Qwen3-1.7B (arXiv 2607.01232), LayerBench
(examples/RESULTS.md), and six older small environments.

Array suffixes: _C candidates, _R rows of evidence, _K grid over K and c.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.search.evidence import Evidence, EvidenceRow
from autolayer.search.records import Candidate, RaceConfig

DRIFT = 0.25
"""Standard deviation of the contributions of one model's layers: .2 to .3 in all those experiments."""
EARLY = 0.25
"""Share of the full run at which a score has a correlation of .71 with the final one. On LayerBench the score at a
quarter of a run, at each layer's best rate, has a mean rank correlation of .4 to .5 with the contribution (early.py).
In the six older environments the score at a tenth of a run had .6 to .94."""
RATE_SD = 0.1
"""Standard deviation of the effect of a learning rate inside the searched span, in contribution. Also the expected
loss of a rate at the end of the span; it falls with the square of the log-distance to the starting rate."""
SEED_SD = 0.07
"""Standard deviation between training seeds of one arm, in contribution: .1 in the small environments, less with
larger batches."""


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """The correlation of a prediction's errors, and the trust that it deserves."""

    correlation: float
    """Correlation of the errors in neighbouring layers: contributions are smooth in depth, but for drops."""
    length: float
    """Distance over which that correlation falls by a factor of e, as a share of the model's depth."""
    trust: tuple[tuple[float, float], ...]
    """Grid of trust in the prediction, as pairs of weight and prior probability."""


SMALL_MODEL = PredictionError(correlation=0.5, length=0.15, trust=((1.0, 0.35), (0.5, 0.3), (0.0, 0.35)))
"""On small models, every signal that was tried is useless somewhere. In race_simulation.py, more doubt costs little if
the prediction is good and saves much if it is not."""
PRETRAINED_MODEL = PredictionError(correlation=0.95, length=0.25, trust=((1.0, 0.9), (0.5, 0.08), (0.0, 0.02)))
"""Correlation and length are near the most likely ones on the curves of pretrained models, each predicted by a depth
prior fitted without its family. From equal odds, full trust has a posterior of .8 there, and each curve adds to it
(`python examples/prior_errors.py`)."""
TIME_CONSTANTS = (0.05, 0.15, 0.4, 1.5)
"""Grid of c, as shares of the full run. With the largest, g_c is nearly a straight line."""
FULL_GAINS = tuple(float(x) for x in 0.4 * np.exp(np.linspace(-2.0, 2.0, 9)))
"""Grid of K, in standard deviations of a single reward: around .4 (10 to 20 points of accuracy near 50%)."""
FULL_GAIN_SPREAD = 1.0
"""Prior standard deviation of the natural logarithm of K."""


def prediction_error(config: RaceConfig) -> PredictionError:
    """Returns how the errors of the prediction hang together for the race's model."""
    return PRETRAINED_MODEL if config.is_pretrained else SMALL_MODEL


def contribution_prior(
    config: RaceConfig, candidates: Sequence[Candidate], trust: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prior mean (C,) and covariance (C, C) of theta.

    Trust below 1 shrinks the predictions towards their mean and adds the variance that they lose to the covariance.
    """
    predicted_C = np.array([candidate.predicted for candidate in candidates])
    sd_C = np.array([candidate.predicted_sd for candidate in candidates])
    mean_C = predicted_C.mean() + trust * (predicted_C - predicted_C.mean())
    sd_C = np.sqrt(np.maximum(sd_C, 1e-3) ** 2 + (1 - trust**2) * predicted_C.var())
    depth_C = np.array([np.mean(candidate.layers) for candidate in candidates]) / max(1, config.num_layers)
    error = prediction_error(config)
    correlation_C_C = error.correlation * np.exp(-np.abs(depth_C[:, None] - depth_C) / error.length)
    np.fill_diagonal(correlation_C_C, 1.0)
    return mean_C, sd_C[:, None] * correlation_C_C * sd_C


def deviation_covariance(config: RaceConfig, rows: Sequence[EvidenceRow]) -> np.ndarray:
    """Returns the covariance of rate + delta + seed, shape (R, R). The rate effect drifts too."""
    step_R = np.array([row.end for row in rows], dtype=float)
    later_R_R = np.minimum(np.maximum(step_R[:, None], step_R) / config.total_steps, 1.0)
    drift_R_R = (1 / later_R_R - 1) / (1 / EARLY - 1)
    layers_R_R = equality_matrix([row.slot.layers for row in rows])
    rate_R_R = equality_matrix([rate_key(row) for row in rows])
    arm_R_R = equality_matrix([row.slot for row in rows])
    return DRIFT**2 * layers_R_R * drift_R_R + RATE_SD**2 * rate_R_R * (1 + drift_R_R) + SEED_SD**2 * arm_R_R


def rate_mean(config: RaceConfig, candidate: Candidate, log_rate: float) -> float:
    """Returns the prior mean of a rate's effect: 0 at the starting rate, -RATE_SD at the ends of the span."""
    if config.fixed_rate or config.rate_span == 1:
        return 0.0
    return -RATE_SD * ((log_rate - np.log(candidate.learning_rate)) / np.log(config.rate_span)) ** 2


def score_slopes(config: RaceConfig, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Returns K g_c at every grid point and row, shape (K, R), and the grid's unnormalised log prior, shape (K,)."""
    slopes_K_R, log_prior_K = [], []
    for constant in TIME_CONSTANTS:
        shape_R = np.array([_learned(row, config.total_steps, constant) for row in evidence.rows])
        for gain in FULL_GAINS:
            slopes_K_R.append(gain * evidence.reward_sd * shape_R)
            log_prior_K.append(-0.5 * (np.log(gain / 0.4) / FULL_GAIN_SPREAD) ** 2)
    return np.array(slopes_K_R), np.array(log_prior_K)


def rate_key(row: EvidenceRow) -> tuple[tuple[int, ...], int]:
    """Identifies a candidate at one learning rate."""
    return row.slot.layers, row.slot.rate_index


def equality_matrix(left: Sequence[Hashable], right: Sequence[Hashable] | None = None) -> np.ndarray:
    """Returns a matrix: 1 where a key of `left` (rows) equals one of `right` (columns; None: of `left`), else 0."""
    right = left if right is None else right
    codes = {key: code for code, key in enumerate(dict.fromkeys([*left, *right]))}
    left_codes, right_codes = np.array([codes[k] for k in left]), np.array([codes[k] for k in right])
    return (left_codes[:, None] == right_codes).astype(float).reshape(len(left), len(right))


def _learned(row: EvidenceRow, total_steps: int, constant: float) -> float:
    """Returns g_c at the row's end, or its mean over the steps that the row covers."""
    # Rollouts of step k come from the weights after k - 1 steps.
    steps = np.array([row.end]) if row.start == row.end else np.arange(row.start, row.end)
    shares = steps / total_steps
    return float(np.mean(1 - np.exp(-shares / constant)) / (1 - np.exp(-1 / constant)))
