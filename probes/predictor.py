"""The predictor: turns the probes' scores into predicted contribution with an interval.

On small models it learns from measured environments (base, task, algorithm) the slope of contribution over the scores
of `trusted_gain`, both centred in each environment and the score standardised. The mean level is added afterwards, with
its own uncertainty. Errors are those on environments whose base took no part in the fit. Depth and mixtures of several
probes, by fixed or by learned weights, predict left-out bases no better (examples/RESULTS.md).

For models of `depth_prior.SMALL` parameters or more, the weights are fixed (pretrained.py). The user's own measurements
of such models scale that prediction in the same way; small ones have no part in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from autolayer.core import depth_prior
from autolayer.probes.known import KnownEnvironment
from autolayer.probes.pretrained import predict_pretrained

# E environments, L layers of one, S seeds that it was probed with.

SIGNAL = "trusted_gain"
"""The probe that the prediction of small models is made from: the best single one on LayerBench."""
MIN_BASES = 3  # fewer cannot be judged by leaving one out
INTERVAL = 0.8


Scores = Mapping[str, Sequence[float]]
"""The scores of the candidates by probe."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted contribution of each candidate; arrays in the candidates' order."""

    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    deviations: tuple[float, ...]
    """Standard deviation of each layer's error relative to the model's mean: the error that counts between layers."""
    learned_from: int
    """Number of environments that the fit has seen; 0 if there were too few bases."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The relation of contribution to the scores of `SIGNAL`."""

    slope: float
    """Contribution per standard deviation of the scores over a model's layers."""
    level: float
    """Mean contribution of a model's layers."""
    level_sd: float
    """Standard deviation of that mean for a new model."""
    deviation: float
    """Standard deviation of one layer's error relative to the model's mean, on bases that were left out."""
    num_environments: int
    num_parameters: int
    """Size of the largest model it has learned from."""


PUBLISHED = Model(
    slope=0.4 * depth_prior.DEVIATION,
    level=depth_prior.MEAN_CONTRIBUTION,
    level_sd=depth_prior.LEVEL_SD,
    deviation=depth_prior.DEVIATION,
    num_environments=0,
    num_parameters=0,
)
"""Level and spread of published models, with about the correlation that `SIGNAL` has with contribution on LayerBench.
It is used where too few bases are measured."""


def predict(scores: Scores, layers: Sequence[int], num_layers: int, *, model: Model, num_parameters: int) -> Prediction:
    """Turns the scores of the probes into predicted contribution, with an interval of coverage `INTERVAL`.

    `model` is fit to measured environments, none of them of this base unless the user measured it. Of a pretrained
    model it is used only if it was fit to such models.
    """
    is_small = not depth_prior.applies(num_parameters)
    if is_small or depth_prior.applies(model.num_parameters):
        predicted_L = model.level + model.slope * _signal(scores, layers, num_layers, is_small)
        deviation_L, level_sd = np.full(len(layers), model.deviation), model.level_sd
    else:
        predicted_L, deviation_L = predict_pretrained(scores, layers, num_layers)
        level_sd = depth_prior.LEVEL_SD
    half_width_L = stats.norm.ppf((1 + INTERVAL) / 2) * np.hypot(deviation_L, level_sd)
    return Prediction(
        predicted=tuple(map(float, predicted_L)),
        low=tuple(map(float, predicted_L - half_width_L)),
        high=tuple(map(float, predicted_L + half_width_L)),
        deviations=tuple(map(float, deviation_L)),
        learned_from=model.num_environments,
    )


def fit(known: Sequence[KnownEnvironment], *, is_small: bool = True) -> Model:
    """Fits the slope by least squares, and estimates the error on bases that the fit has not seen.

    Small models are fit to small ones alone, and the others to the others. Every environment counts the same, however
    many layers it has and however often it was probed. One that was not probed by `SIGNAL` tells only about level and
    error. With fewer than `MIN_BASES` bases, `PUBLISHED` is returned.
    """
    known = [each for each in known if depth_prior.applies(each.num_parameters) != is_small]
    if len({environment.base for environment in known}) < MIN_BASES:
        return PUBLISHED
    scores = [
        np.array([_signal(probing, each.layers, each.num_layers, is_small) for probing in each.probings])
        for each in known
    ]
    centred = [np.array(each.contribution_L) - np.mean(each.contribution_L) for each in known]
    scores_squared_E = np.array([np.mean(score_S_L**2) for score_S_L in scores])
    product_E = np.array([np.mean(score_S_L * y_L) for score_S_L, y_L in zip(scores, centred, strict=True)])
    variance_E = np.array([np.mean(y_L**2) for y_L in centred])

    def slope(used_E: np.ndarray) -> float:
        return product_E[used_E].sum() / max(scores_squared_E[used_E].sum(), 1e-12)  # 0 without any scores

    base_E = np.array([environment.base for environment in known])
    slope_E = np.array([slope(base_E != base) for base in base_E])
    error_E = variance_E - 2 * slope_E * product_E + slope_E**2 * scores_squared_E
    level_E = np.array([np.mean(environment.contribution_L) for environment in known])
    return Model(
        slope=float(slope(np.full(len(known), True))),
        level=float(level_E.mean()),
        level_sd=float(level_E.std(ddof=1) * np.sqrt(1 + 1 / len(known))),
        deviation=float(error_E.mean()) ** 0.5,
        num_environments=len(known),
        num_parameters=max(environment.num_parameters for environment in known),
    )


def standard(values_L: np.ndarray) -> np.ndarray:
    """Standardises values to mean 0 and deviation 1 over the candidates; zeros where all are equal."""
    deviation = float(values_L.std())
    return (values_L - values_L.mean()) / deviation if deviation > 0 else np.zeros_like(values_L, dtype=float)


def _signal(scores: Scores, layers: Sequence[int], num_layers: int, is_small: bool) -> np.ndarray:
    """Returns what contribution is regressed on, standardised: the probe `SIGNAL`, or what fixed weights predict."""
    if not is_small:
        return standard(predict_pretrained(scores, layers, num_layers)[0])
    return standard(np.array(scores.get(SIGNAL, [0.0] * len(layers)), dtype=float))
