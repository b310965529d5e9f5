"""The baselines: choices that know nothing of the task. They run as ordinary probes and appear in every table."""

import random

import numpy as np

from autolayer.core import depth_prior
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext


class DepthBaseline(Probe):
    """Scores a layer by its depth alone.

    Formula: one of `depth_prior.DEPTH_BASELINES`, of the layer and the number of layers. Shape (candidates,).
    Source: `position` is the depth prior, which puts a best layer of a published model that it has not seen above
    another one with probability .9 (examples/RESULTS.md); on very small models `last` is hard to beat.
    Cost: nothing. Known to fail: whenever the best depth depends on the task.
    """

    is_baseline, needs_gradients = True, False

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        return Scores(scores_L=depth_prior.scores(self.name, context.layers, len(context.bench.layers)))


class Random(Probe):
    """Scores every layer with a uniform random number of the run's seed, to show what no knowledge at all gives."""

    is_baseline, needs_gradients = True, False

    def score(self, context: ProbeContext) -> Scores:
        """Returns the scores by the class's formula."""
        generator = random.Random(f"{context.seed}-random-baseline")
        return Scores(scores_L=np.array([generator.random() for _ in context.layers]))
