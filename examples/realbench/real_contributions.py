"""The contribution of every measured layer of an environment, from the records that `run.py` keeps."""

from collections import defaultdict
from typing import Any

import numpy as np
from real_environments import rewards

DRAWS = 2000


def best_rates(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the record of each arm ('full' or a layer) at its best rate on the last `select` evaluation."""
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for key, record in found["arms"].items():
        if "failed" not in record:
            by_arm[key.split("_")[0].removeprefix("layer-")].append(record)
    return {
        arm: max(records, key=lambda record: rewards([*record["select"].values()][-1]).mean())
        for arm, records in by_arm.items()
    }


def contributions(found: dict[str, Any]) -> dict[int, tuple[float, float, float]]:
    """Returns contribution and interval of each measured layer."""
    arms, base_I = best_rates(found), rewards(found["base"]["eval"])
    rng, full_I = np.random.default_rng(0), rewards(arms["full"]["eval"]) - base_I
    drawn_D_I = rng.integers(len(base_I), size=(DRAWS, len(base_I)))
    values = {}
    for arm, record in arms.items():
        if arm != "full":
            gain_I = rewards(record["eval"]) - base_I
            ratios_D = gain_I[drawn_D_I].mean(1) / full_I[drawn_D_I].mean(1)
            low, high = np.quantile(ratios_D, [0.025, 0.975])
            values[int(arm)] = (gain_I.mean() / full_I.mean(), low, high)
    return dict(sorted(values.items()))
