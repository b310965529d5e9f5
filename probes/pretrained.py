"""The prediction for pretrained language models: depth, what the base reads, and the gain of a few steps or of one.

The three have fixed and equal weights. Measured curves of such models are too few to learn weights from, and nothing
that holds for models of a million parameters is known to hold for them. The constants are those that the curves in
examples/RESULTS.md support.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from autolayer.core import depth_prior
from autolayer.core.probe_plan import MIN_IMITATION_CANDIDATES

# L layers.

UNREAD, READ = 0.40, 0.55
"""Mean contribution of a layer behind the cutoff, and what a layer has more that the base reads wholly. A layer behind
the cutoff contributed between .05 and .84: it can sharpen an answer that is there already."""
NO_GAIN, GAIN = 0.15, 0.85
"""Mean contribution of a layer without a gain, and what a layer has more whose score is among the highest."""
NUM_TOP = 3
"""Number of the highest scores whose mean is the unit of a gain."""
MIN_LAYERS = MIN_IMITATION_CANDIDATES
"""With fewer candidates the highest scores say nothing of the model, and no gain is used."""
CERTAIN, UNCERTAIN = 0.13, 0.30
"""Deviation of contribution from the prediction where the base reads a layer wholly, and behind the cutoff."""
SHARPER = 0.8
"""Deviation of the prediction's error with a gain (measured with `sign_gain`) against that of depth alone."""


def predict_pretrained(
    scores: Mapping[str, Sequence[float]], layers: Sequence[int], num_layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted contribution and the deviation of its error, each of shape (layers,).

    `scores` are the probes' by name; `cutoff`, and `self_imitation` or else `sign_gain`, count where they are among
    them, and depth always. No layer is predicted at 0 because the base does not read it, for that does not keep it from
    learning.
    """
    opinions = [depth_prior.predicted(layers, num_layers)]
    deviation_L = depth_prior.error_deviation(layers, num_layers)
    for name in ("self_imitation", "sign_gain") if len(layers) >= MIN_LAYERS else ():
        gain_L = np.clip(np.asarray(scores.get(name, [0.0]), dtype=float), 0, None)
        if (top := float(np.sort(gain_L)[-NUM_TOP:].mean())) > 0:
            opinions.append(NO_GAIN + GAIN * np.minimum(gain_L / top, 1.2))
            deviation_L = SHARPER * deviation_L
            break
    if "cutoff" in scores:
        read_L = np.clip(np.asarray(scores["cutoff"], dtype=float), 0, 1)
        opinions.append(UNREAD + READ * read_L)
        deviation_L = UNCERTAIN + (CERTAIN - UNCERTAIN) * read_L
    return np.mean(opinions, axis=0), deviation_L
