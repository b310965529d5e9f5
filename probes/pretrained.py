"""The prediction for pretrained language models: depth and what the base reads, with fixed weights.

Measured curves of such models are too few to learn weights from, and nothing that holds for models of a million
parameters is known to hold for them. The constants are those that the curves in examples/RESULTS.md support.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from autolayer.core import depth_prior

# L layers.

UNREAD, READ = 0.40, 0.55
"""Mean contribution of a layer behind the cutoff, and what a layer has more that the base reads wholly. A layer behind
the cutoff contributed between .05 and .84: it can sharpen an answer that is there already."""
CUTOFF_WEIGHT = 0.5
"""Weight of the cutoff; the depth prior has the rest."""
CERTAIN, UNCERTAIN = 0.13, 0.30
"""Deviation of contribution from the prediction where the base reads a layer wholly, and behind the cutoff."""


def predict_pretrained(
    scores: Mapping[str, Sequence[float]], layers: Sequence[int], num_layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted contribution and the deviation of its error, each of shape (layers,).

    `scores` are the probes' by name. Where `cutoff` is not among them, depth alone predicts. No layer is predicted at 0
    because the base does not read it, for that does not keep it from learning.
    """
    predicted_L = depth_prior.predicted(layers, num_layers)
    if "cutoff" not in scores:
        return predicted_L, depth_prior.error_deviation(layers, num_layers)
    read_L = np.clip(np.asarray(scores["cutoff"], dtype=float), 0, 1)
    predicted_L = (1 - CUTOFF_WEIGHT) * predicted_L + CUTOFF_WEIGHT * (UNREAD + READ * read_L)
    return predicted_L, UNCERTAIN + (CERTAIN - UNCERTAIN) * read_L
