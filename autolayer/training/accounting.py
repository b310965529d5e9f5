"""Counts what a run has cost so far in this process, in tokens and in seconds."""

from dataclasses import replace

from autolayer.core.costs import Cost, CostModel
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.rollouts import Rollouts


class Account:
    """Adds up the cost of the work of one process; `num_samplers` ranks sample at the same time."""

    def __init__(self, costs: CostModel, num_samplers: int = 1) -> None:
        self.costs, self.num_samplers = costs, num_samplers
        self.spent = Cost()
        self.training_seconds = self.training_layer_tokens = 0.0
        """Totals over the passes of training steps only, from which `exchange_rate` takes the speed of a pass."""

    def charge(self, cost: Cost, seconds: float) -> None:
        """Adds the cost of some work and the seconds that it took."""
        self.spent += replace(cost, seconds=seconds)

    def time_training(self, layer_tokens: float, seconds: float) -> None:
        """Adds the forward and backward passes of some training steps."""
        self.training_layer_tokens += layer_tokens
        self.training_seconds += seconds

    def generation(self, rollouts: Rollouts) -> Cost:
        """Returns the cost of sampling some rollouts."""
        return self.costs.generate(rollouts.num_read, rollouts.num_generated)

    def exchange_rate(self, engine: Engine) -> float:
        """Returns the measured time of generating a token divided by that of a forward pass over one; at least 1.

        It is 1 as long as nothing was generated or trained.
        """
        if not engine.tokens or not self.training_layer_tokens:
            return 1.0
        per_generated = engine.seconds / (engine.tokens * self.num_samplers)
        per_layer_token = self.training_seconds / self.training_layer_tokens
        return max(1.0, per_generated / (per_layer_token * (self.costs.num_layers + self.costs.head_ratio)))
