"""Prints LayerBench's tables from results/: how good the prediction and `pick` are, beside every baseline and probe.

    python examples/layerbench/table.py             # seconds: nothing is run
    python examples/layerbench/table.py --json      # the same numbers, for a machine
    python examples/layerbench/table.py --fixed     # the prediction by its fixed weights, which learn nothing
    python examples/layerbench/table.py --sealed    # with the sealed environments: once, at the end

The tables are Markdown, so README.md holds them as they are printed. The prediction is made anew from the stored probe
scores, by a fit that has seen nothing of the environment's base.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from environments import ENVIRONMENTS, Environment
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from run import known, load

from autolayer import positions
from autolayer.comparing.metrics import coverage, regret, spearman, winkler
from autolayer.comparing.resampling import bootstrap_interval
from autolayer.contribution import Contribution
from autolayer.probes.base import Scores
from autolayer.probes.known import Known
from autolayer.probes.predictor import predict
from autolayer.stats import Interval

PROBES = (
    "trusted_gain",
    "reach",
    "natural_gain",
    "gain_per_kl",
    "line_search",
    "rl_burst",
    "representation_change",
    "gradient_norm",
)
BASELINES = ("first", "middle", "last", "random", "position")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One row of the tables: numbers of one environment, by name of the method; None where a method has none."""

    name: str
    sealed: bool
    ceiling: float | None
    best: int
    spearman: Mapping[str, float | None]
    regret: Mapping[str, float]
    coverage: Mapping[str, float]
    winkler: Mapping[str, float]
    cost: Mapping[str, float]
    picked: Mapping[str, list[int]]
    gain: Mapping[str, float]
    log_loss: tuple[float, float] | None
    """Of `pick`'s probability_best, and of the uninformed forecast."""


def judge(environment: Environment, learned: list[Known]) -> Judged:
    found = load(environment)
    assert found is not None
    measured = Contribution.from_dict(found["contribution"])
    layers, depth = tuple(measured.layers), measured.num_layers
    truth_L = np.array([measured.layers[layer].value for layer in layers])
    truth_S_L = np.array([measured.by_seed()[layer] for layer in layers]).T
    others = [each for each in learned if each.base != measured.base]

    scores: dict[str, list[np.ndarray]] = {}
    covered: dict[str, list[float]] = {"prediction": []}
    winklers: dict[str, list[float]] = {"prediction": []}
    for probing in found["probings"]:
        signals = _signals(probing)
        made = predict(signals, layers, depth, known=others, num_parameters=measured.num_parameters)
        scores.setdefault("prediction", []).append(np.array(made.predicted))
        covered["prediction"].append(coverage(truth_L, made.low, made.high))
        winklers["prediction"].append(winkler(truth_L, made.low, made.high))
        for name in PROBES:
            if name in signals:
                scores.setdefault(name, []).append(signals[name].scores_L)
    for name in positions.POSITIONS:
        scores[name] = [positions.scores(name, layers, depth)]
    low_L, high_L = positions.position_interval(layers, depth)
    covered["position"], winklers["position"] = [coverage(truth_L, low_L, high_L)], [winkler(truth_L, low_L, high_L)]

    regrets = {name: float(np.mean([regret(s, truth_S_L) for s in each])) for name, each in scores.items()}
    regrets["random"] = regret(np.zeros(len(layers)), truth_S_L)
    cost, picked, forecasts = {}, {}, []
    for run in found.get("picks", ()):
        name = f"pick {run['budget']:g}"
        picked.setdefault(name, []).extend(run["best_layers"])
        cost.setdefault(name, []).append(run["cost_share"])
        chosen = np.array([float(layer in run["best_layers"]) for layer in layers])
        regrets.setdefault(name, []).append(regret(chosen, truth_S_L))  # pyright: ignore
        forecasts += [_log_loss(run["ranking"], truth_S_L, layers)]
    regrets = {name: float(np.mean(value)) for name, value in regrets.items()}

    gain = {"full": measured.full.value, "middle": float(np.mean(measured.layers[_nearest(layers, depth // 2)].gains))}
    if trained := [run["gain"] for run in found.get("picks", ()) if run.get("gain") is not None]:
        gain["pick 0.25"] = float(np.mean(trained))
    if "lora" in found:
        gain["LoRA"] = float(np.mean(found["lora"]["gains"]))
    return Judged(
        name=environment.name,
        sealed=environment.sealed,
        ceiling=measured.ceiling,
        best=layers[int(truth_L.argmax())],
        spearman={name: _mean([spearman(s, truth_L) for s in each]) for name, each in scores.items()} | {"random": 0.0},
        regret=regrets,
        coverage={name: float(np.mean(value)) for name, value in covered.items()},
        winkler={name: float(np.mean(value)) for name, value in winklers.items()},
        cost={name: float(np.mean(value)) for name, value in cost.items()},
        picked=picked,
        gain=gain,
        log_loss=(float(np.mean(forecasts)), float(np.log(len(layers)))) if forecasts else None,
    )


def _signals(probing: Mapping[str, Any]) -> dict[str, Scores]:
    """Stored scores with errors that give back the stored reliability."""
    signals = {}
    for name, values in probing["scores"].items():
        if name in probing["reliability"]:
            scores_L = np.array(values)
            noise = max(0.0, (1 - probing["reliability"][name]) * float(scores_L.var(ddof=1)))
            signals[name] = Scores(scores_L=scores_L, errors_L=np.full(len(scores_L), noise**0.5))
    return signals


def _log_loss(ranking: list[dict[str, Any]], truth_S_L: np.ndarray, layers: tuple[int, ...]) -> float:
    """Minus the log of the probability given to the layer that was best, averaged over training seeds."""
    probability = {row["layer"]: max(row["probability_best"] or 0.0, 1e-3) for row in ranking}
    total = sum(probability.get(layer, 1e-3) for layer in layers)
    return float(np.mean([-np.log(probability.get(layers[int(s.argmax())], 1e-3) / total) for s in truth_S_L]))


def _nearest(layers: tuple[int, ...], wanted: int) -> int:
    return min(layers, key=lambda layer: abs(layer - wanted))


def _mean(values: list[float | None]) -> float | None:
    """A constant has no rank correlation; like a random order it counts as 0."""
    return float(np.mean([value or 0.0 for value in values])) if values else None


def per_environment(rows: list[Judged]) -> Table:
    table = Table(title="LayerBench, left-out bases", box=MARKDOWN)
    heads = ("environment", "best", "ceiling", "Spearman", "regret: prediction", "pick .25", "cost", "pick 1", "cost",
             "first", "middle", "last", "random", "position")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="left" if head == "environment" else "right")
    for row in rows:
        table.add_row(
            row.name + (" (sealed)" if row.sealed else ""), str(row.best), _f(row.ceiling),
            _f(row.spearman["prediction"]), _f(row.regret["prediction"]), _f(row.regret.get("pick 0.25")),
            _f(row.cost.get("pick 0.25")), _f(row.regret.get("pick 1")), _f(row.cost.get("pick 1")),
            *(_f(row.regret[name]) for name in BASELINES),
        )  # fmt: skip
    return table


def means(rows: list[Judged], title: str) -> Table:
    """Every method's means, and how much better the prediction is, paired over environments."""
    table = Table(title=title, box=MARKDOWN)
    for head in (
        "method",
        "Spearman",
        "regret",
        "worst",
        "prediction's Spearman minus it",
        "its regret minus the prediction's",
    ):
        table.add_column(head, justify="left" if head == "method" else "right")
    names = ["prediction", "pick 0.25", "pick 1", *PROBES, *BASELINES]
    for name in names:
        having = [row for row in rows if name in row.regret]
        if not having:
            continue
        correlated = [row for row in having if row.spearman.get(name) is not None]
        table.add_row(
            f"{name} ({len(having)})",
            _f(_mean([row.spearman[name] for row in correlated])),
            _f(float(np.mean([row.regret[name] for row in having]))),
            _f(max(row.regret[name] for row in having)),
            _interval([(r.spearman["prediction"] or 0) - (r.spearman[name] or 0) for r in correlated], name),
            _interval([row.regret[name] - row.regret["prediction"] for row in having], name),
        )
    return table


def gains(rows: list[Judged]) -> Table:
    table = Table(title="Gain in reward of the whole run, equal steps", box=MARKDOWN)
    names = ("full", "pick 0.25", "middle", "LoRA")
    for head in ("environment", *names):
        table.add_column(head, justify="left" if head == "environment" else "right")
    for row in rows:
        table.add_row(row.name, *(_f(row.gain.get(name), 3) for name in names))
    return table


def sentences(rows: list[Judged]) -> list[str]:
    """The numbers that the tables leave out."""
    share = np.mean([(row.spearman["prediction"] or 0) / row.ceiling for row in rows if row.ceiling])
    found = [f"Spearman of the prediction as a share of the ceiling: {share:.2f}"]
    for name in ("prediction", "position"):
        cover, score = (np.mean([getattr(row, what)[name] for row in rows]) for what in ("coverage", "winkler"))
        found.append(f"80% intervals of {name}: hold {cover:.0%} of the layers, Winkler score {score:.2f}")
    if losses := [row.log_loss for row in rows if row.log_loss]:
        ours, none = np.mean(losses, axis=0)
        found.append(f"log loss of probability_best: {ours:.2f}, uninformed {none:.2f}")
    return found


def _interval(difference: list[float], name: str) -> str:
    if len(difference) < 3 or name == "prediction":
        return "-"
    found: Interval = bootstrap_interval(difference)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _f(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fixed", action="store_true", help="the prediction by its fixed weights")
    parser.add_argument("--sealed", action="store_true", help="with the sealed environments: once, at the end")
    options = parser.parse_args()
    done = [e for e in ENVIRONMENTS.values() if "probings" in (load(e) or {}) and (options.sealed or not e.sealed)]
    learned = [known(environment) for environment in done if not (environment.sealed or options.fixed)]
    rows = [judge(environment, learned) for environment in done]
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return
    console = Console(width=170)
    console.print(per_environment(rows))
    for sealed, title in ((False, "Means, sealed ones apart"), (True, "Means of the sealed environments")):
        if part := [row for row in rows if row.sealed is sealed]:
            console.print(means(part, title))
            console.print(*sentences(part), sep="\n")
    console.print(gains(rows))


if __name__ == "__main__":
    main()
