"""The contribution that depth alone predicts: a prior fitted to published models, and baselines that need no model.

`examples/depth_prior.py` fits the prior to the curves of pretrained language models trained by RL, and prints its worth
with each family of models left out, and the constants below. The baselines of the same names (probes/baselines.py) and
`compare` take their scores from here.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

RISE_END, FALL_WIDTH = 0.45, 0.08
"""Relative depth at which the rise ends, and width of the fall, both set before the fit."""
RISE, FALL, FALL_DEPTH = 0.60, 0.87, 0.76
"""Contribution that is missing per unit of depth before `RISE_END`, contribution lost by the fall, and its middle."""
LEVEL = 1.08
"""Contribution without rise and fall."""
MEAN_CONTRIBUTION, CONTRIBUTION_SD = 0.80, 0.3
"""Mean of the prior over all depths, and deviation of contribution over the layers of a published model."""
DEVIATION, LEVEL_SD = 0.19, 0.10
"""Deviations on models that took no part in the fit: of one layer's error around the model's mean, and of that mean."""
MIDDLE_SD, END_SD = 0.10, 0.35
"""Deviation of a layer's error around its model's mean at `RISE_END`, and what it grows by per unit of depth from there
(`python examples/prior_errors.py`)."""
REGRET = (0.06, 0.01, 0.10)
"""Contribution that the prior's first choice lost on the curves of left-out models: mean, least and most."""
SUPERVISED_REGRET = 0.97
"""The most that it lost on curves of supervised LoRA, which took no part in the fit."""
NUM_CURVES = 4
"""Number of these curves; they are of three models."""
SMALL = 100_000_000
"""Parameters below which the prior says nothing: its models have 135 million to 8 billion."""
NORMAL_80 = 1.2816
"""Half width of the 80% interval of a normal distribution with deviation 1."""


def depth_curve(depth: ArrayLike, rise: float = RISE, fall: float = FALL, fall_depth: float = FALL_DEPTH) -> np.ndarray:
    """Returns contribution minus `LEVEL` at relative depths from 0 to 1: a rise to `RISE_END`, and a fall near the end.

    Formula: -rise · max(0, RISE_END - d) - fall / (1 + exp(-(d - fall_depth) / FALL_WIDTH)).
    """
    depth = np.asarray(depth, dtype=float)
    return -rise * np.maximum(0, RISE_END - depth) - fall / (1 + np.exp(-(depth - fall_depth) / FALL_WIDTH))


def _depth(layers: Sequence[int], num_layers: int) -> np.ndarray:
    return np.array(layers, dtype=float) / max(1, num_layers - 1)


DEPTH_BASELINES: dict[str, Callable[[int, int], float]] = {
    "first": lambda layer, num_layers: -layer,
    "middle": lambda layer, num_layers: -abs(layer - num_layers // 2),
    "last": lambda layer, num_layers: layer,
    "position": lambda layer, num_layers: float(depth_curve(layer / max(1, num_layers - 1))),
}
"""Maps a name to a function of a layer (0 is next to the embedding) and the number of layers, which returns the layer's
score; higher means more contribution."""
BASELINES = ("random", *DEPTH_BASELINES)
"""The baselines that know nothing of the model; all are probes as well (probes/baselines.py)."""


def scores(name: str, layers: Sequence[int], num_layers: int) -> np.ndarray:
    """Returns the scores of some layers by the baseline `name`, shape (layers,)."""
    return np.array([DEPTH_BASELINES[name](layer, num_layers) for layer in layers], dtype=float)


def predicted(layers: Sequence[int], num_layers: int) -> np.ndarray:
    """Returns the contribution that depth alone predicts, shape (layers,)."""
    return LEVEL + depth_curve(_depth(layers, num_layers))


def applies(num_parameters: int) -> bool:
    """Returns True for a model of the size of those that the prior was fitted to."""
    return num_parameters >= SMALL


def error_deviation(layers: Sequence[int], num_layers: int) -> np.ndarray:
    """Returns the deviation of the prediction's error around the model's mean, shape (layers,)."""
    return MIDDLE_SD + END_SD * np.abs(_depth(layers, num_layers) - RISE_END)


def position_interval(layers: Sequence[int], num_layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns low and high of the 80% intervals that depth alone predicts, each of shape (layers,).

    They are narrow in the middle and wide at both ends, where models differ.
    """
    predicted_L = predicted(layers, num_layers)
    half_L = NORMAL_80 * np.hypot(error_deviation(layers, num_layers), LEVEL_SD)
    return predicted_L - half_L, predicted_L + half_L


def level_interval(layers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns low and high of the 80% interval of layers about which nothing is known, each of shape (layers,)."""
    level_L = np.full(len(layers), MEAN_CONTRIBUTION)
    return level_L - NORMAL_80 * CONTRIBUTION_SD, level_L + NORMAL_80 * CONTRIBUTION_SD
