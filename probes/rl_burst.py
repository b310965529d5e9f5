"""What a few real RL steps on a layer bring."""

from __future__ import annotations

import numpy as np

from autolayer.core.arms import Arm
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.starting_rates import STEPS_TO_DISTANCE, starting_rates
from autolayer.rollouts.types import request_seed


class RLBurst(Probe):
    """Paired gain in reward after a few on-policy steps of the very trainer that the final run uses.

    Formula: score_l = mean over items of reward(after k steps on layer l) - reward(base), same items of the `probe`
    split, same sampling noise. Shape (candidates,), in reward. Cost: k steps and one evaluation per layer.
    Source: short runs as predictors of long ones (successive halving, arXiv 1502.07943); one step at the better of
    two rates already had Spearman .66 and .94 with the measured contribution on two small environments.
    Known to fail: one common rate for all layers (.37), which is why each layer has a rate of its own; and
    tasks where no layer gains anything measurable in the first steps.
    Where the budget pays for a race it is left out: the race's first rung is a burst of the candidates that matter.
    """

    def score(self, context: ProbeContext) -> Scores | None:
        plan, bench = context.plan, context.bench
        if not plan.burst_steps:
            return None
        base_I = np.array(bench.evaluate("probe", plan.burst_items, seed=context.seed))
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
            trained = bench.train(arm, plan.burst_steps, prompts_per_step=plan.burst_prompts).arm
            after_I = np.array(bench.evaluate("probe", plan.burst_items, seed=context.seed, arm=trained))
            gains_L_I.append(after_I - base_I)
            bench.forget(trained)
        return Scores.of_samples(gains_L_I)
