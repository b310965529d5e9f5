"""From scores to predicted contribution, with an interval. Simple on purpose.

Every probe is standardised over the candidates and they are averaged with fixed weights. What that average is
worth is not learned here but taken from six small measured environments, and the interval says how little it is:
it is nearly as wide as knowing nothing. Position has no part in it: depth learned on very small models does not
carry over to large ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.preprocessing import scale

from autolayer.probes.base import Scores

WEIGHTS = {"gain_per_kl": 1.0, "line_search": 0.5, "rl_burst": 1.0, "representation_change": 0.25}
"""By how well each ranked layers so far (examples/RESULTS.md); gradient_norm misleads too often for a part."""
LEVEL, SPREAD = 0.75, 0.3
"""Mean and deviation of contribution over the layers of published models (arXiv 2607.01232, seven models)."""
CORRELATION = 0.55
"""Correlation of the average with measured contribution: what six small environments gave, rounded down."""
LEVEL_OF_INTERVAL = 0.8


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted contribution of each candidate; arrays in the candidates' order."""

    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    deviation: float
    """Standard deviation of the prediction's error, in contribution."""


def predict(probes: Mapping[str, Scores]) -> Prediction:
    """Combines probe scores; names without a weight are passed over.

    Every probe counts by its weight times the share of its variance over layers that is not its own noise, so a probe
    that saw nothing says nothing, and if none saw anything every layer gets the same prediction.

    Args:
        probes: Probe name -> its scores, all over the same candidates.
    """
    shape = next(iter(probes.values())).scores_L.shape
    combined_L, weights, reliable = np.zeros(shape), 0.0, 0.0
    for name, weight in WEIGHTS.items():
        if name in probes:
            reliability = probes[name].reliability
            combined_L += weight * reliability * scale(probes[name].scores_L)
            weights, reliable = weights + weight, reliable + weight * reliability
    # Noise lowers a correlation by the square root of the reliability (attenuation).
    known = CORRELATION * (reliable / weights) ** 0.5 if reliable > 0 else 0.0
    predicted_L = LEVEL + SPREAD * known * scale(combined_L)
    deviation = SPREAD * float(np.sqrt(1 - known**2))
    reach = float(stats.norm.ppf((1 + LEVEL_OF_INTERVAL) / 2)) * deviation
    return Prediction(
        predicted=tuple(map(float, predicted_L)),
        low=tuple(map(float, predicted_L - reach)),
        high=tuple(map(float, predicted_L + reach)),
        deviation=deviation,
    )
