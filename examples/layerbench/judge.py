"""Judges what is stored in results/: the prediction, `pick`, every baseline and probe, one environment at a time.

The prediction is made anew from the stored probe scores, by fits that have seen nothing of the environment's base, or
of its architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from environments import Environment
from run import load
from scipy import stats

from autolayer.comparison.metrics import coverage, regret, spearman, winkler
from autolayer.core import depth_prior
from autolayer.probes.known import KnownEnvironment
from autolayer.probes.predictor import fit, predict
from autolayer.reporting.contribution import Contribution

PROBES = ("trusted_gain", "reach", "gain_per_kl", "rl_burst", "representation_change", "gradient_norm")
BASELINES = ("first", "middle", "last", "random", "position")
NEW_ARCHITECTURE = "prediction, architectures left out"
LEVEL = "the level alone"
"""Knows mean and deviation of the other bases' contributions, and nothing of this one."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Numbers of one environment, by name of the method; None where a method has none."""

    name: str
    base: str
    sealed: bool
    ceiling: float | None
    best: int
    spearman: Mapping[str, float | None]
    regret: Mapping[str, float]
    coverage: Mapping[str, float]
    winkler: Mapping[str, float]
    cost: Mapping[str, float]
    picked: Mapping[str, list[int]]
    steps: Mapping[str, list[int]]
    """Steps of each run's longest arm; 0 where no race was run."""
    gain: Mapping[str, float]
    log_loss: Mapping[str, float]
    """All pairs of probability_best and whether the layer was best, by budget; and of the uninformed forecast."""


def judge(environment: Environment, learned: Sequence[KnownEnvironment]) -> Judged:
    found = load(environment)
    assert found is not None
    measured = Contribution.from_dict(found["contribution"])
    layers, depth = tuple(measured.layers), measured.num_layers
    truth_L = np.array([measured.layers[layer].value for layer in layers])
    truth_S_L = np.array([measured.by_seed()[layer] for layer in layers]).T

    # By name as well as by weights: a base that was built anew is still the same base.
    others = [each for each in learned if each.base != measured.base and each.name.split(".")[0] != environment.base]
    scores: dict[str, list[np.ndarray]] = {}
    models = {
        "prediction": fit(others),
        NEW_ARCHITECTURE: fit([each for each in learned if each.architecture != measured.architecture]),
    }
    covered: dict[str, list[float]] = {"prediction": []}
    winklers: dict[str, list[float]] = {"prediction": []}
    for probing in found["probings"]:
        signals = probing["scores"]
        for name, model in models.items():
            made = predict(signals, layers, depth, model=model, num_parameters=measured.num_parameters)
            scores.setdefault(name, []).append(np.array(made.predicted))
            if name == "prediction":
                covered[name].append(coverage(truth_L, made.low, made.high))
                winklers[name].append(winkler(truth_L, made.low, made.high))
        for name in PROBES:
            if name in signals:
                scores.setdefault(name, []).append(np.array(signals[name]))
    for name in depth_prior.DEPTH_BASELINES:
        scores[name] = [depth_prior.scores(name, layers, depth)]
    for name, (low_L, high_L) in (
        ("position", depth_prior.position_interval(layers, depth)),
        (LEVEL, _level_interval(others, len(layers))),
    ):
        covered[name], winklers[name] = [coverage(truth_L, low_L, high_L)], [winkler(truth_L, low_L, high_L)]

    regrets = {name: [regret(score_L, truth_S_L) for score_L in each] for name, each in scores.items()}
    regrets["random"] = [regret(np.zeros(len(layers)), truth_S_L)]
    cost: dict[str, list[float]] = {}
    picked: dict[str, list[int]] = {}
    steps: dict[str, list[int]] = {}
    losses: dict[str, list[float]] = {}
    for run in found.get("picks", ()):
        name = f"pick {run['budget']:g}"
        picked.setdefault(name, []).extend(run["best_layers"])
        steps.setdefault(name, []).append(max(row["measured_steps"] or 0 for row in run["ranking"]))
        cost.setdefault(name, []).append(run["cost_share"])
        chosen_L = np.array([float(layer in run["best_layers"]) for layer in layers])
        regrets.setdefault(name, []).append(regret(chosen_L, truth_S_L))
        ours, uninformed = log_loss(run["ranking"], truth_S_L, layers)
        losses.setdefault(name, []).append(ours)
        losses.setdefault("uninformed", []).append(uninformed)

    middle = min(layers, key=lambda layer: abs(layer - depth // 2))
    gain = {"full": measured.full.value, "middle": float(np.mean(measured.layers[middle].gains))}
    if trained := [run["gain"] for run in found.get("picks", ()) if run.get("gain") is not None]:
        gain["pick 0.25"] = float(np.mean(trained))
    if "lora" in found:
        gain["LoRA"] = float(np.mean(found["lora"]["gains"]))
    return Judged(
        name=environment.name,
        base=measured.base,
        sealed=environment.sealed,
        ceiling=measured.ceiling,
        best=layers[int(truth_L.argmax())],
        spearman={name: mean([spearman(s, truth_L) for s in each]) for name, each in scores.items()} | {"random": 0.0},
        regret=_means(regrets),
        coverage=_means(covered),
        winkler=_means(winklers),
        cost=_means(cost),
        picked=picked,
        steps=steps,
        gain=gain,
        log_loss=_means(losses),
    )


def best_probe_of_others(rows: Sequence[Judged]) -> dict[str, tuple[float, float]]:
    """Returns, by environment, Spearman and regret of the probe that has the least mean regret on all other bases."""
    found = {}
    for row in rows:
        others = [other for other in rows if other.base != row.base]
        usable = [name for name in PROBES if name in row.regret and all(name in other.regret for other in others)]
        best = min(usable, key=lambda name: float(np.mean([other.regret[name] for other in others])))
        found[row.name] = (row.spearman[best] or 0.0, row.regret[best])
    return found


def log_loss(ranking: Sequence[dict[str, Any]], truth_S_L: np.ndarray, layers: Sequence[int]) -> tuple[float, float]:
    """Mean log loss of (probability, was best) over layers and training seeds, ours and with one over their number."""
    stated = {row["layer"]: row["probability_best"] or 0.0 for row in ranking}
    was_S_L = np.eye(len(layers))[truth_S_L.argmax(1)]

    def of(probability_L: np.ndarray) -> float:
        sure_L = np.clip(probability_L, 1e-3, 1 - 1e-3)
        return float(-np.mean(was_S_L * np.log(sure_L) + (1 - was_S_L) * np.log(1 - sure_L)))

    return of(np.array([stated.get(layer, 0.0) for layer in layers])), of(np.full(len(layers), 1 / len(layers)))


def mean(values: Sequence[float | None]) -> float | None:
    """A constant has no rank correlation; like a random order it counts as 0."""
    return float(np.mean([value or 0.0 for value in values])) if values else None


def _level_interval(others: Sequence[KnownEnvironment], num_layers: int) -> tuple[np.ndarray, np.ndarray]:
    """The 80% interval of somebody who knows the other environments' levels and spreads; the same for every layer."""
    level, spread = depth_prior.MEAN_CONTRIBUTION, depth_prior.CONTRIBUTION_SD
    if others:
        contributions = [np.array(each.contribution_L) for each in others]
        levels = np.array([each.mean() for each in contributions])
        level, within = levels.mean(), np.mean([each.var() for each in contributions])
        spread = float(np.sqrt(levels.var() + within))
    reach_L = np.full(num_layers, stats.norm.ppf(0.9) * spread)
    return level - reach_L, level + reach_L


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(each)) for name, each in values.items()}
