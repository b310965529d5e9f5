"""Computes the posterior of every candidate's final contribution from the prediction and the short runs.

The model (`curve_model`) is Gaussian once trust in the prediction, full gain K and time constant c are fixed. Then, for
a score vector y = S (m + z) + noise with slopes S = diag(K g_c), prior mean m and covariance C of z:

    y ~ N(S m, V) with V = S C S + noise,    E[t | y] = m_t + C_tz S V^-1 (y - S m)

The posterior averages over a grid of the three, each point weighted by its prior times N(y; S m, V).

Array suffixes: _C candidates, _R rows of evidence, _T targets (a candidate at one rate), _G grid points, _D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolayer.search import curve_model
from autolayer.search.curve_model import equality_matrix
from autolayer.search.evidence import Evidence
from autolayer.search.records import Candidate, RaceConfig

NEGLIGIBLE = 1e-3
"""Grid points whose probability relative to the best one is below this are left out."""


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Joint posterior of the candidates' contributions, each at its best measured learning rate."""

    candidates: tuple[Candidate, ...]
    eligible_C: np.ndarray
    """False for candidates whose runs failed."""
    rate_index_C: tuple[int, ...]
    """Index of each candidate's rate with the highest posterior mean, which a lucky short run alone does not decide."""
    expected_C: np.ndarray
    draws_D_C: np.ndarray
    """Joint draws, shape (D, C); minus infinity for candidates that cannot be chosen."""

    @property
    def ranked(self) -> list[int]:
        """Indices of the eligible candidates, highest posterior mean first; ties by higher layers first."""
        eligible = [index for index in range(len(self.candidates)) if self.eligible_C[index]]
        return sorted(eligible, key=lambda i: (self.expected_C[i], self.candidates[i].layers), reverse=True)

    @property
    def probability_best_C(self) -> np.ndarray:
        """Probability that each candidate is the best, shape (C,). Sums to 1; 0 for ineligible candidates."""
        counts_C = np.bincount(self.draws_D_C.argmax(axis=1), minlength=len(self.candidates))
        return counts_C / len(self.draws_D_C)

    @property
    def regret_C(self) -> np.ndarray:
        """Expected loss of contribution by choosing each candidate, shape (C,); infinite for ineligible ones."""
        return np.mean(self.draws_D_C.max(axis=1, keepdims=True) - self.draws_D_C, axis=0)

    @property
    def interval_C(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of each candidate's 80% interval, shape (C,) each; NaN for ineligible ones."""
        low_C, high_C = np.full((2, len(self.candidates)), np.nan)
        low_C[self.eligible_C], high_C[self.eligible_C] = np.quantile(
            self.draws_D_C[:, self.eligible_C], [0.1, 0.9], axis=0
        )
        return low_C, high_C

    def probability_above(self, index: int) -> np.ndarray:
        """Returns the probability that each candidate is better than the one at `index`, shape (C,)."""
        return np.mean(self.draws_D_C > self.draws_D_C[:, [index]], axis=0)


def infer(
    config: RaceConfig,
    candidates: Sequence[Candidate],
    evidence: Evidence,
    eligible: Sequence[bool],
    num_draws: int = 4000,
) -> Posterior:
    """Combines prediction and evidence into the posterior of the contributions; without evidence it is the prior.

    `eligible` is False for each candidate that cannot be chosen, and True for at least one. Probabilities are multiples
    of 1 / `num_draws`.
    """
    place = {candidate.layers: index for index, candidate in enumerate(candidates)}
    targets = sorted({(place[row.slot.layers], row.slot.rate_index) for row in evidence.rows})
    unmeasured = set(range(len(candidates))) - {index for index, _ in targets}
    targets += [(index, 0) for index in sorted(unmeasured)]
    weighted = _condition(config, candidates, evidence, targets)
    mean_T = np.sum([weight * point.mean_T for weight, point in weighted], axis=0)
    best_C = [
        max((t for t, (index, _) in enumerate(targets) if index == c), key=lambda t: mean_T[t])
        for c in range(len(candidates))
    ]
    draws_D_C = np.random.default_rng([config.seed, len(candidates)]).standard_normal((num_draws, len(candidates)))
    start, share = 0, 0.0
    for weight, point in weighted:
        share += weight
        end = round(share * num_draws)
        if end > start:
            root_C_C = np.linalg.cholesky(point.covariance_T_T[np.ix_(best_C, best_C)] + 1e-9 * np.eye(len(best_C)))
            draws_D_C[start:end] = point.mean_T[best_C] + draws_D_C[start:end] @ root_C_C.T
        start = end
    eligible_C = np.asarray(eligible, dtype=bool)
    draws_D_C[:, ~eligible_C] = -np.inf
    return Posterior(
        candidates=tuple(candidates),
        eligible_C=eligible_C,
        rate_index_C=tuple(targets[t][1] for t in best_C),
        expected_C=mean_T[best_C],
        draws_D_C=draws_D_C,
    )


@dataclass(frozen=True, kw_only=True)
class _GridPoint:
    """Posterior of the targets at one grid point, and the grid point's unnormalised log-probability."""

    log_weight: float
    mean_T: np.ndarray
    covariance_T_T: np.ndarray


def _condition(
    config: RaceConfig, candidates: Sequence[Candidate], evidence: Evidence, targets: list[tuple[int, int]]
) -> list[tuple[float, _GridPoint]]:
    """Returns the targets given the scores at every grid point that is not negligible, with weights that sum to 1."""
    place = {candidate.layers: index for index, candidate in enumerate(candidates)}
    of_T, of_R = [index for index, _ in targets], [place[row.slot.layers] for row in evidence.rows]
    rate_T = [(candidates[index].layers, rate) for index, rate in targets]
    rate_R = [curve_model.rate_key(row) for row in evidence.rows]
    shift_R = np.array(
        [curve_model.rate_mean(config, candidates[i], row.log_rate) for i, row in zip(of_R, evidence.rows, strict=True)]
    )
    shifts = dict(zip(rate_R, shift_R, strict=True))
    shift_T = np.array([shifts.get(key, 0.0) for key in rate_T])
    rate_T_T = curve_model.RATE_SD**2 * equality_matrix(rate_T)
    rate_T_R = curve_model.RATE_SD**2 * equality_matrix(rate_T, rate_R)
    deviation_R_R = curve_model.deviation_covariance(config, evidence.rows)
    slopes_K_R, log_prior_K = curve_model.score_slopes(config, evidence)
    points: list[_GridPoint] = []
    for trust, probability in curve_model.prediction_error(config).trust:
        mean_C, covariance_C_C = curve_model.contribution_prior(config, candidates, trust)
        latent_R_R = covariance_C_C[np.ix_(of_R, of_R)] + deviation_R_R
        target_T_T = covariance_C_C[np.ix_(of_T, of_T)] + rate_T_T
        cross_T_R = covariance_C_C[np.ix_(of_T, of_R)] + rate_T_R
        # y ~ N(S m, V): the whitened residual and the determinant of V's Cholesky root give its density.
        total_K_R_R = slopes_K_R[:, :, None] * latent_R_R * slopes_K_R[:, None, :] + evidence.noise_R_R
        root_K_R_R = np.linalg.cholesky(total_K_R_R)
        residual_K_R = evidence.score_R - slopes_K_R * (mean_C[of_R] + shift_R)
        white_K_R = np.linalg.solve(root_K_R_R, residual_K_R[:, :, None])[:, :, 0]
        log_det_K = np.log(np.diagonal(root_K_R_R, axis1=1, axis2=2)).sum(axis=1)
        log_weight_K = np.log(probability) + log_prior_K - 0.5 * (white_K_R**2).sum(axis=1) - log_det_K
        # With one score far out, log weights are so large that all but the largest are negligible.
        for k in np.flatnonzero(log_weight_K >= log_weight_K.max() + np.log(NEGLIGIBLE)):
            gain_R_T = np.linalg.solve(root_K_R_R[k], (cross_T_R * slopes_K_R[k]).T)
            points.append(
                _GridPoint(
                    log_weight=float(log_weight_K[k]),
                    mean_T=mean_C[of_T] + shift_T + white_K_R[k] @ gain_R_T,
                    covariance_T_T=target_T_T - gain_R_T.T @ gain_R_T,
                )
            )
    weights = np.exp(np.array([point.log_weight for point in points]) - max(point.log_weight for point in points))
    weights = np.where(weights < NEGLIGIBLE, 0.0, weights) / weights[weights >= NEGLIGIBLE].sum()
    return [(float(weight), point) for weight, point in zip(weights, points, strict=True) if weight]
