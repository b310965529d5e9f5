"""The predictor: turns probe scores into predicted contribution with an interval, by ridge regression.

It learns from measured environments (base, task, algorithm). Each is centred: the regression learns which layers of one
model are above its mean, never how good models are in general. That level is added afterwards, with its own
uncertainty. Every error estimate comes from environments whose base took no part in the fit.

Depth is no feature: learned from LayerBench it made predictions for left-out bases worse (examples/RESULTS.md). For
models of `SMALL` parameters or more, a weak prior from published models is added, and level and error are those of
published models until models of that size have been measured (core/depth_prior.py, arXiv 2607.01232).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.linear_model import ridge_regression

from autolayer.core import depth_prior
from autolayer.probes.base import Scores
from autolayer.probes.known import KnownEnvironment

# E environments, L layers of one, F features, P penalties, R rows: one for each layer, probing and environment.

FEATURES = ("trusted_gain", "reach", "natural_gain")
"""Probes that take part in the prediction; examples/RESULTS.md says why these."""
SMALL = 100_000_000
"""Parameters below which the published curves, of models of 1.5 to 8 billion parameters, say nothing."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge penalties per environment, of which the one that predicts left-out bases best is taken."""
MIN_BASES = 3
"""Number of bases below which nothing can be judged by leaving one out."""
FALLBACK = dict(zip(FEATURES, (0.4, 0.3, 0.1), strict=True))
"""Weights, in standard deviations of contribution, that hold until learned ones beat them."""
INTERVAL = 0.8


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted contribution of each candidate; arrays in the candidates' order."""

    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    deviation: float
    """Standard deviation of one layer's error relative to the model's mean: the error that counts between layers."""
    learned_from: int
    """Number of environments that the fit has seen; 0 for the fallback."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A fitted linear combination of probe scores."""

    weights_F: np.ndarray
    """Contribution per standard deviation of each of `FEATURES`."""
    level: float
    """Mean contribution of a model's layers."""
    level_sd: float
    """Standard deviation of that mean for a new model."""
    deviation: float
    """Standard deviation of one layer's error relative to the model's mean, on bases that were left out."""
    num_environments: int
    num_parameters: int
    """Size of the largest model it has learned from."""

    def centred(self, probes: Mapping[str, ArrayLike], num_candidates: int) -> np.ndarray:
        """Returns predicted contribution minus its mean over the candidates, (L,)."""
        return features(probes, num_candidates) @ self.weights_F


def predict(
    probes: Mapping[str, Scores],
    layers: Sequence[int],
    num_layers: int,
    *,
    model: Model,
    num_parameters: int,
) -> Prediction:
    """Combines probe scores into predicted contribution.

    Args:
        probes: Probe name -> its scores, all over the same candidates. Other names are ignored.
        layers: The candidates.
        num_layers: Blocks of the model.
        model: `fit` to measured environments, none of them of this base unless the user measured it.
        num_parameters: Size of the model; from `SMALL` on, the published curves are a prior.

    Returns:
        Predicted contribution of each candidate, with an interval of coverage `INTERVAL`.
    """
    errors = model if model.num_parameters >= SMALL or num_parameters < SMALL else _fallback()
    centred_L = model.centred({name: scores.scores_L for name, scores in probes.items()}, len(layers))
    if num_parameters >= SMALL:
        prior_L = standard(depth_prior.scores("position", layers, num_layers))
        centred_L = centred_L + depth_prior.PRIOR_CORRELATION * depth_prior.CONTRIBUTION_SD * prior_L
    spread = float(np.hypot(errors.deviation, errors.level_sd))
    half_width = float(stats.norm.ppf((1 + INTERVAL) / 2)) * spread
    predicted_L = errors.level + centred_L
    return Prediction(
        predicted=tuple(map(float, predicted_L)),
        low=tuple(map(float, predicted_L - half_width)),
        high=tuple(map(float, predicted_L + half_width)),
        deviation=errors.deviation,
        learned_from=model.num_environments,
    )


def fit(known: Sequence[KnownEnvironment]) -> Model:
    """Fits the weights, and estimates the error on bases that the fit has not seen.

    There are three candidates, from simple to free: the fallback's weights with a learned scale, the single probe that
    does best, and free weights for all. It takes the simplest whose error on left-out bases is within one standard
    error of the least (Breiman et al. 1984).

    Args:
        known: Measured environments.

    Returns:
        The fitted model; fixed weights where there are fewer than `MIN_BASES` bases.
    """
    if len({environment.base for environment in known}) < MIN_BASES:
        return _fallback()
    rows, every = [_rows(environment) for environment in known], np.eye(len(FEATURES))
    choices = [
        _learn(known, rows, _fallback().weights_F[None]),
        min((_learn(known, rows, single[None]) for single in every), key=lambda each: each[1].mean()),
        _learn(known, rows, every),
    ]
    _, least_E = min(choices, key=lambda each: each[1].mean())
    weights_F, error_E = next(each for each in choices if _within_one_error(each[1] - least_E))
    levels = np.array([np.mean(environment.contribution_L) for environment in known])
    return Model(
        weights_F=weights_F,
        level=float(levels.mean()),
        level_sd=float(levels.std(ddof=1) * np.sqrt(1 + 1 / len(levels))),
        deviation=float(error_E.mean()) ** 0.5,
        num_environments=len(known),
        num_parameters=max(environment.num_parameters for environment in known),
    )


def _learn(
    known: Sequence[KnownEnvironment], rows: Sequence[Rows], mixtures_K_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fits probe weights as a sum of these mixtures, by the penalty that predicts left-out bases best.

    Returns:
        The weights, (F,), and their mean square error on each environment when its base is left out, (E,).
    """
    scale = np.linalg.norm(mixtures_K_F, axis=1, keepdims=True)  # the penalties assume inputs of deviation 1
    mixed = [(x_R_F @ (mixtures_K_F / scale).T, y_R) for x_R_F, y_R in rows]
    errors_P_E = _left_out_errors(known, mixed)
    best = int(errors_P_E.mean(1).argmin())
    return _weights_P_F(mixed)[best] @ (mixtures_K_F / scale), errors_P_E[best]


def _within_one_error(difference_E: np.ndarray) -> bool:
    """Returns True if a mean is at most one standard error above 0."""
    return bool(difference_E.mean() <= difference_E.std(ddof=1) / np.sqrt(len(difference_E)))


def features(probes: Mapping[str, ArrayLike], num_candidates: int) -> np.ndarray:
    """Returns the regression's inputs, (L, F), each standardised over the candidates.

    Scores are not shrunk by their reliability: it is estimated from a handful of folds and is so noisy itself that
    shrinking made predictions of left-out bases worse (examples/RESULTS.md). A probe that was left out, or sees no
    difference, is 0 everywhere.
    """
    nothing_L = np.zeros(num_candidates)
    columns = [standard(np.asarray(probes[name])) if name in probes else nothing_L for name in FEATURES]
    return np.stack(columns, axis=1)


def standard(values_L: np.ndarray) -> np.ndarray:
    """Standardises values to mean 0 and deviation 1 over the candidates; zeros where all are equal."""
    deviation = float(values_L.std())
    return (values_L - values_L.mean()) / deviation if deviation > 0 else np.zeros_like(values_L)


Rows = tuple[np.ndarray, np.ndarray]
"""Inputs (R, F) and centred contributions (R,) of one environment."""


def _rows(environment: KnownEnvironment) -> Rows:
    inputs = [features(probing, len(environment.layers)) for probing in environment.probings]
    centred_L = np.array(environment.contribution_L) - np.mean(environment.contribution_L)
    return np.concatenate(inputs), np.tile(centred_L, len(inputs))


def _weights_P_F(rows: Sequence[Rows]) -> np.ndarray:
    """Fits one ridge regression per penalty; every environment counts the same, however often it was probed."""
    weight_R = np.concatenate([np.full(len(target_R), 1 / len(target_R)) for _, target_R in rows])
    inputs_R_F, target_R = np.concatenate([x for x, _ in rows]), np.concatenate([y for _, y in rows])
    target_R_P = np.tile(target_R[:, None], len(PENALTIES))
    weights = ridge_regression(inputs_R_F, target_R_P, np.array(PENALTIES), sample_weight=weight_R, solver="cholesky")
    return weights.reshape(len(PENALTIES), -1)  # flat where there is one penalty


def _left_out_errors(known: Sequence[KnownEnvironment], rows: Sequence[Rows]) -> np.ndarray:
    """Returns mean square errors on each environment, (P, E), by weights fitted without its base."""
    weights = {
        base: _weights_P_F([r for k, r in zip(known, rows, strict=True) if k.base != base])
        for base in {environment.base for environment in known}
    }
    pairs = zip(known, rows, strict=True)
    return np.stack([np.mean((y_R - weights[k.base] @ x_R_F.T) ** 2, axis=1) for k, (x_R_F, y_R) in pairs], axis=1)


def _fallback() -> Model:
    """Returns fixed weights with the level and spread of published models, for too few measured bases."""
    return Model(
        weights_F=np.array([FALLBACK[name] * depth_prior.CONTRIBUTION_SD for name in FEATURES]),
        level=depth_prior.MEAN_CONTRIBUTION,
        level_sd=depth_prior.CONTRIBUTION_SD / 2,
        deviation=depth_prior.CONTRIBUTION_SD,
        num_environments=0,
        num_parameters=0,
    )
