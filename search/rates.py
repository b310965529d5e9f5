"""Second and third learning rates of a layer, drawn by Optuna's TPE.

What is searched is the ratio to the layer's starting rate, over all layers together: if those are all too low, every
layer's next rate profits from having seen that once.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import replace

import optuna

from autolayer.core.arms import RungResult
from autolayer.search.records import Candidate, RaceConfig, Run

PARAMETER = "log2_ratio"


def learning_rate(
    config: RaceConfig,
    candidate: Candidate,
    run: Run,
    results: Mapping[Run, RungResult],
) -> float:
    """The learning rate of a slot that starts: the starting rate, or a draw.

    The draw depends on shorter runs only and on a seed made from the slot: whoever starts the run, and in whatever
    order, draws the same.
    """
    if run.slot.rate_index == 0 or config.fixed_rate or config.rate_span == 1:
        return candidate.learning_rate
    for other, result in results.items():
        if (other.slot.layers, other.slot.rate_index) == (run.slot.layers, run.slot.rate_index):
            return result.arm.learning_rate  # a fresh seed, or the arm itself going on
    width = math.log2(config.rate_span)
    distribution = optuna.distributions.FloatDistribution(-width, width)
    seed = zlib.crc32(f"{config.seed}/{run.slot.layers}/{run.slot.rate_index}".encode())
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=False)
    )
    for ratio, value in _observed(run, results):
        clipped = min(max(ratio, -width), width)
        study.add_trial(
            optuna.trial.create_trial(params={PARAMETER: clipped}, distributions={PARAMETER: distribution}, value=value)
        )
    return candidate.learning_rate * 2.0 ** study.ask({PARAMETER: distribution}).params[PARAMETER]


def _observed(run: Run, results: Mapping[Run, RungResult]) -> list[tuple[float, float]]:
    """Ratio to the starting rate, and gain over that rate's arm of the same layers, step and seed, on common items."""
    observed = []
    for other in sorted(results, key=lambda r: r.key):
        first = replace(other, slot=replace(other.slot, rate_index=0))
        start = next((r for r in results if r.slot == first.slot and r.to_step == first.to_step), None)
        if other.to_step < run.to_step and start is not None:
            ratio = results[other].arm.learning_rate / results[start].arm.learning_rate
            pairs = list(zip(results[other].select_rewards_I, results[start].select_rewards_I, strict=False))
            scores = [sum(rewards) / len(pairs) for rewards in zip(*pairs, strict=True)]
            observed.append((math.log2(ratio), scores[0] - scores[1]))
    return observed
