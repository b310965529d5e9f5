"""Scores that depend on a layer's depth alone: baselines that every prediction must beat, and a weak prior.

The probes of the same names (probes/baselines.py) and `compare` take them from here.
"""

from collections.abc import Callable, Sequence

import numpy as np

BEST_DEPTH = 0.40
"""Closeness to this relative depth alone reaches Spearman .76 on the published curve (Qwen3-1.7B, arXiv 2607.01232)."""
MEAN_CONTRIBUTION, CONTRIBUTION_SD = 0.75, 0.3
"""Mean and deviation of contribution over the layers of published models (arXiv 2607.01232, seven models)."""
PRIOR_CORRELATION = 0.3
"""Assumed correlation of the rule with contribution on other models; no other curve was found to follow it."""
HALF_WIDTH = 1.2816 * CONTRIBUTION_SD
"""Half width of the 80% interval of a normal distribution with deviation `CONTRIBUTION_SD`."""


def _position(layer: int, num_layers: int) -> float:
    return -abs(layer / max(1, num_layers - 1) - BEST_DEPTH)


DEPTH_BASELINES: dict[str, Callable[[int, int], float]] = {
    "first": lambda layer, num_layers: -layer,
    "middle": lambda layer, num_layers: -abs(layer - num_layers // 2),
    "last": lambda layer, num_layers: layer,
    "position": _position,
}
"""Maps a name to a function of a layer (0 is next to the embedding) and the number of layers, which returns the layer's
score; higher means more contribution."""


def scores(name: str, layers: Sequence[int], num_layers: int) -> np.ndarray:
    """Returns the scores of some layers by the baseline `name`, shape (layers,)."""
    return np.array([DEPTH_BASELINES[name](layer, num_layers) for layer in layers], dtype=float)


def position_interval(layers: Sequence[int], num_layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns low and high of the 80% intervals that depth alone predicts, each of shape (layers,)."""
    scores_L = scores("position", layers, num_layers)
    deviation = float(scores_L.std())
    standard_L = (scores_L - scores_L.mean()) / deviation if deviation > 0 else np.zeros_like(scores_L)
    predicted_L = MEAN_CONTRIBUTION + CONTRIBUTION_SD * PRIOR_CORRELATION * standard_L
    return predicted_L - HALF_WIDTH, predicted_L + HALF_WIDTH


def level_interval(layers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns low and high of the 80% interval of layers about which nothing is known, each of shape (layers,)."""
    level_L = np.full(len(layers), MEAN_CONTRIBUTION)
    return level_L - HALF_WIDTH, level_L + HALF_WIDTH
