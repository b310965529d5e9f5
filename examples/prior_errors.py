"""Fits the depth prior's errors: `MIDDLE_SD` and `END_SD` of core/depth_prior.py, `PRETRAINED_MODEL` of curve_model.py.

    python examples/prior_errors.py          # seconds; nothing is downloaded

Every whole published curve is predicted by a prior that was fitted without its family. Its errors around their mean are
Gaussian: with deviations `middle + end · |depth - RISE_END|`, the correlation `correlation · exp(-distance / length)`
between layers, and the noise of the measurement.
Expected: small errors in the middle, which are smooth over a quarter of the depth. The last two rows are the constants
of small models and those of pretrained ones.
"""

import itertools

import numpy as np
from depth_prior import CHOSEN, CURVES, FORMS, WHOLE, depths, fit, known, without

from autolayer.core.depth_prior import DEVIATION, END_SD, MIDDLE_SD, RISE_END
from autolayer.search.curve_model import PRETRAINED_MODEL, SMALL_MODEL

CORRELATIONS = (0.3, 0.5, 0.7, 0.85, 0.95, 0.999)
LENGTHS = (0.05, 0.1, 0.15, 0.25, 0.4, 0.7)
MIDDLES, ENDS = (0.03, 0.06, 0.1, 0.15, DEVIATION, 0.23), (0.0, 0.2, 0.35, 0.55, 0.8)
TRUST = (1.0, 0.5, 0.0)
NOISE, LEVEL_SD = 0.06, 0.2
"""Deviations of a measured contribution from the true one, and of the curve's level, which is not judged here."""

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def left_out(name: str) -> Curve:
    """Returns depths, measured contributions, and those of the prior fitted without the curve's family."""
    curve = CURVES[name]
    layers, values = known(curve)
    depth_L = depths(curve)[layers]
    return depth_L, values, FORMS[CHOSEN][0](depth_L, fit(without(curve.family)))


def log_likelihood(
    curve: Curve, middle: float, end: float, correlation: float, length: float, trust: float = 1.0
) -> float:
    """Returns the log density of a curve, apart from a constant."""
    depth_L, values_L, shape_L = curve
    predicted_L = shape_L.mean() + trust * (shape_L - shape_L.mean())
    sd_L = np.sqrt((middle + end * np.abs(depth_L - RISE_END)) ** 2 + (1 - trust**2) * shape_L.var())
    correlation_L_L = correlation * np.exp(-np.abs(depth_L[:, None] - depth_L) / length)
    np.fill_diagonal(correlation_L_L, 1.0)
    covariance_L_L = sd_L[:, None] * correlation_L_L * sd_L + NOISE**2 * np.eye(len(sd_L)) + LEVEL_SD**2
    error_L = values_L - predicted_L
    error_L = error_L - error_L.mean()
    return float(-0.5 * (error_L @ np.linalg.solve(covariance_L_L, error_L) + np.linalg.slogdet(covariance_L_L)[1]))


def main() -> None:
    curves = {name: left_out(name) for name in WHOLE}

    def total(*parameters: float) -> float:
        return sum(log_likelihood(curve, *parameters) for curve in curves.values())

    grid = sorted(itertools.product(MIDDLES, ENDS, CORRELATIONS, LENGTHS), key=lambda one: -total(*one))
    small, usual = SMALL_MODEL, PRETRAINED_MODEL
    print("| middle | end | correlation | length | log-likelihood |\n| --- | --- | --- | --- | --- |")
    for each in (*grid[:5], (DEVIATION, 0.0, small.correlation, small.length),
                 (MIDDLE_SD, END_SD, usual.correlation, usual.length)):  # fmt: skip
        print(f"| {' | '.join(map(str, each))} | {total(*each):.1f} |")
    print("\n| curve | probability of trust 1 | .5 | 0 |\n| --- | --- | --- | --- |")
    shares = []
    for name, curve in curves.items():
        logs = np.array([
            log_likelihood(curve, MIDDLE_SD, END_SD, usual.correlation, usual.length, trust)
            for trust in TRUST
        ])  # fmt: skip
        shares.append(np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum())
        print(f"| {name} | {' | '.join(f'{share:.2f}' for share in shares[-1])} |")
    print(f"| mean | {' | '.join(f'{share:.2f}' for share in np.mean(shares, axis=0))} |")


if __name__ == "__main__":
    main()
