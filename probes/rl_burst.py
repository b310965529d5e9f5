"""Probe `rl_burst`: the gain in reward after a few real RL steps on a layer."""

import numpy as np

from autolayer.core.arms import Arm
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.starting_rates import STEPS_TO_DISTANCE, starting_rates
from autolayer.rollouts.rollouts import request_seed
from autolayer.training.train_arm import train_arm


class RLBurst(Probe):
    """Scores a layer by the gain in reward after a few on-policy steps of the very trainer that the final run uses.

    Formula: score_l = mean over items of reward(after k steps on layer l) - reward(base), on the same items of the
    `probe` split with the same sampling noise. Shape (candidates,), in reward.
    Source: short runs as predictors of long ones (successive halving, arXiv 1502.07943).
    Cost: k training steps and one evaluation per layer.
    Measured: one step at the better of two rates had Spearman .66 and .94 with contribution on two small environments,
    and .37 at one common rate for all layers, which is why each layer has its own.
    Known to fail: tasks where no layer gains anything measurable in the first steps. It is left out where the budget
    pays for a race, whose first rung is a burst of the candidates that matter.
    """

    def score(self, context: ProbeContext) -> Scores | None:
        """Returns the scores by the class's formula."""
        plan, bench = context.plan, context.bench
        if not plan.burst_steps:
            return None
        base_I = np.array(bench.evaluate("probe", plan.burst_items, seed=context.seed).rewards_I)
        rates = starting_rates(context, STEPS_TO_DISTANCE)
        gains_L_I = []
        for layer in context.layers:
            rate = rates[layer]
            if rate is None:
                gains_L_I.append(0 * base_I)  # nothing moves: the trained layer would be the base layer
                continue
            # A seed of its own keeps the burst's checkpoints apart from the search's arms.
            seed = request_seed(context.seed, "burst") % 2**31
            arm = Arm(layers=(layer,), learning_rate=rate, seed=seed)
            trained = train_arm(bench, arm, plan.burst_steps, prompts_per_step=plan.burst_prompts).arm
            after_I = np.array(bench.evaluate("probe", plan.burst_items, seed=context.seed, arm=trained).rewards_I)
            gains_L_I.append(after_I - base_I)
            bench.checkpoints.delete(trained)
        return Scores.of_samples(gains_L_I)
