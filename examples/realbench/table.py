"""Prints RealBench: the contribution of every measured layer, and how well each signal predicts it.

    python examples/realbench/table.py                              # seconds

A layer's value is its gain at the learning rate that is best on the `select` items, divided by that of all parameters,
on the `eval` items, in the mean of its training seeds (few have two). Intervals are paired bootstraps over items, 95%;
how runs differ is not in them. Correlations are over the layers that were measured. Differences of regret have a t
interval over environments.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from real_contributions import contributions, final_rewards
from real_environments import ENVIRONMENTS, load, rewards

from autolayer.comparison.metrics import pearson, spearman
from autolayer.core.statistics import paired_interval

RIVALS = ("position", "middle", "first", "last", "a random layer")
"""What the prediction's first choice is compared with."""


def signals(picks: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the scores of every signal, and the prediction, by name: (seeds, layers)."""
    scores = {"prediction": np.array([pick["predicted"] for pick in picks])} | {
        name: np.array([pick["probes"][name] for pick in picks])
        for name in picks[0]["probes"]
        if all(name in pick["probes"] for pick in picks)
    }
    if {"cutoff", "sign_gain"} <= set(scores):
        cutoff, gain = (np.clip(scores[name].astype(float), 0, None) for name in ("cutoff", "sign_gain"))
        scores["cutoff x root of sign_gain"] = cutoff * np.sqrt(gain)
    return scores


def judge(
    values: dict[int, tuple[float, float, float]], picks: list[dict[str, Any]]
) -> tuple[list[float], dict[str, float]]:
    """Prints every signal's worth.

    Returns that of the prediction (Pearson, Spearman, regret, cost as a share), and the regret of every signal.
    """
    layers, truth_L = list(values), np.array([value[0] for value in values.values()])
    print("  signal                     Pearson  Spearman  regret of its first layer")
    rows = {}
    for name, scores_S_L in signals(picks).items():
        scores_S_L = scores_S_L[:, layers].astype(float)
        columns = [float(np.mean([f(s_L, truth_L) or 0 for s_L in scores_S_L])) for f in (pearson, spearman)]
        regrets = [truth_L.max() - truth_L[s_L >= s_L.max() - 1e-12].mean() for s_L in scores_S_L]
        rows[name] = [*columns, float(np.mean(regrets))]
        print(f"  {name:26s}  {rows[name][0]:6.2f}   {rows[name][1]:6.2f}   {rows[name][2]:6.2f}")
    share, seconds = (float(np.mean([pick[what] for pick in picks])) for what in ("cost_share", "seconds"))
    low_S_L, high_S_L = (np.array([pick[end] for pick in picks])[:, layers] for end in ("low", "high"))
    print(f"  80% intervals hold {np.mean((low_S_L <= truth_L) & (truth_L <= high_S_L)):.0%} of the layers")
    if (truth_L < 0.3).any():
        predicted_S_L = np.array([pick["predicted"] for pick in picks])[:, layers]
        print(f"  layers below .30 are predicted at {predicted_S_L[:, truth_L < 0.3].max():.2f} at most")
    print(f"  finding costs {share:.0%} of a full run in work, {seconds:.0f} s")
    regrets = {name: row[2] for name, row in rows.items()} | {"a random layer": truth_L.max() - truth_L.mean()}
    return [*rows["prediction"], share], regrets


def main() -> None:
    predictions: dict[str, list[list[float]]] = defaultdict(list)
    regrets: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, environment in ENVIRONMENTS.items():
        found = load(environment)
        arms = final_rewards(found)
        if "full" not in arms:
            continue
        base, full = rewards(found["base"]["eval"]).mean(), arms["full"].mean()
        apart = ", held out: not in the means" if environment.held_out else ""
        print(f"{name}: base {base:.3f}, full-parameter RL {full - base:+.3f}{apart}")
        if full <= base:
            print("  no contributions: all parameters gain nothing at the rates tried so far")
            continue
        values = contributions(found)
        for layer, (value, low, high) in values.items():
            print(f"  layer {layer:2d}  {value:5.2f} [{low:5.2f}, {high:5.2f}]  {'#' * max(0, round(20 * value))}")
        for picks in sorted(key for key in found if key.startswith("picks")):
            print(f"  {picks.removeprefix('picks').strip() or 'at the default budget'}:")
            row, regret = judge(values, found[picks])
            if not environment.held_out:
                predictions[picks].append(row)
                regrets[picks].append(regret)
        for searches in sorted(key for key in found if key.startswith("searches")):
            layers, truths = list(values), [value[0] for value in values.values()]
            chosen = [pick["chosen"][0] for pick in found[searches]]
            lost = max(truths) - np.interp(chosen, layers, truths)  # between two measured layers, on the line
            share = np.mean([pick["cost_share"] for pick in found[searches]])
            print(
                f"  {searches}: chose {chosen}, which lose {np.round(lost, 2)}; finding costs {share:.0%} of a full run"
            )
    for picks, rows in predictions.items():
        means = ", ".join(f"{value:.2f}" for value in np.mean(rows, axis=0))
        print(f"{picks}, mean of {len(rows)}: Pearson, Spearman, regret and cost of the prediction {means}")
        for rival in RIVALS if len(rows) > 1 else ():
            mean = np.mean([each[rival] for each in regrets[picks]])
            less = paired_interval(
                [each[rival] for each in regrets[picks]], [each["prediction"] for each in regrets[picks]]
            )
            print(f"  regret of {rival} {mean:.2f}, minus its: {less.value:+.2f} [{less.low:+.2f}, {less.high:+.2f}]")


if __name__ == "__main__":
    main()
