"""The contribution of every measured layer of an environment, from the records that `run.py` keeps."""

from collections import defaultdict
from typing import Any

import numpy as np
from real_environments import rewards

DRAWS = 2000


def final_rewards(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns each arm's rewards on the `eval` items, the mean over its training seeds: 'full' or a layer, (items,).

    An arm's learning rate is the one that is best on the last `select` evaluation.
    """
    by_rate: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for key, record in found["arms"].items():
        if "failed" not in record:
            arm, rate, _ = key.split("_")
            by_rate[arm.removeprefix("layer-")][rate].append(record)
    best = {arm: max(rates.values(), key=_selected) for arm, rates in by_rate.items()}
    return {arm: np.mean([rewards(record["eval"]) for record in records], axis=0) for arm, records in best.items()}


def contributions(found: dict[str, Any]) -> dict[int, tuple[float, float, float]]:
    """Returns contribution and interval of each measured layer."""
    arms, base_I = final_rewards(found), rewards(found["base"]["eval"])
    rng, full_I = np.random.default_rng(0), arms.pop("full") - base_I
    drawn_D_I = rng.integers(len(base_I), size=(DRAWS, len(base_I)))
    values = {}
    for arm, arm_I in arms.items():
        gain_I = arm_I - base_I
        ratios_D = gain_I[drawn_D_I].mean(1) / full_I[drawn_D_I].mean(1)
        low, high = np.quantile(ratios_D, [0.025, 0.975])
        values[int(arm)] = (gain_I.mean() / full_I.mean(), low, high)
    return dict(sorted(values.items()))


def _selected(records: list[dict[str, Any]]) -> float:
    return float(np.mean([rewards([*record["select"].values()][-1]).mean() for record in records]))
