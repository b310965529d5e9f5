"""Fits the depth prior to every curve of a pretrained language model trained by RL, and prints what it is worth.

    python examples/depth_prior.py           # half a minute on one core; nothing is downloaded

Each family of models is left out in turn, and judged by a fit that has not seen it. The fit takes the curves of which
seven layers or more are known; the others, and those of supervised LoRA, are judged only. Expected: a best layer of a
left-out model lies above another one with probability .9 (AUC), and the constants are those of core/depth_prior.py.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from autolayer.comparison import metrics
from autolayer.comparison.published import PublishedCurve, published_curves
from autolayer.core import depth_prior

CURVES = {name: curve for name, curve in published_curves().items() if name != "qwen3-1.7b-12-sets"}  # chosen layers
MIN_KNOWN, NUM_ENDS = 7, 10
METRICS = ("AUC best", "AUC worst", "Pearson", "regret")
FAMILIES = sorted({curve.family for curve in CURVES.values()})
RL = [name for name, curve in CURVES.items() if curve.algorithm != "sft"]
WHOLE = [name for name in RL if len(CURVES[name].values()) >= MIN_KNOWN]
FITTED = [name for name in RL if name in WHOLE or len(CURVES[name].best) >= MIN_KNOWN]

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
FORMS: dict[str, tuple[Shape, tuple[float, ...]]] = {
    "closeness to .40 (before)": (lambda d, p: -np.abs(d - 0.40), ()),
    "closeness to .45": (lambda d, p: -np.abs(d - 0.45), ()),
    "closeness, fitted": (lambda d, p: -abs(p[1]) * np.abs(d - p[0]), (0.42, 1.0)),
    "two slopes": (lambda d, p: np.minimum(abs(p[1]) * (d - p[0]), abs(p[2]) * (p[0] - d)), (0.42, 1.0, 1.0)),
    "hump (square)": (lambda d, p: -abs(p[1]) * (d - p[0]) ** 2, (0.42, 2.0)),
    "plateau and fall": (lambda d, p: depth_prior.depth_curve(d, 0.0, abs(p[0]), p[1]), (0.8, 0.75)),
    "rise and fall": (lambda d, p: depth_prior.depth_curve(d, abs(p[0]), abs(p[1]), p[2]), (0.6, 0.8, 0.75)),
}  # fmt: skip
CHOSEN = "rise and fall"
WITH_SUPERVISED = "rise and fall, fitted to supervised LoRA too"


def without(family: str, names: Sequence[str] = FITTED) -> list[str]:
    return [name for name in names if CURVES[name].family != family]


def depths(curve: PublishedCurve) -> np.ndarray:
    return np.arange(curve.num_layers) / (curve.num_layers - 1)


def known(curve: PublishedCurve) -> tuple[np.ndarray, np.ndarray]:
    """Layers of known contribution, and their values."""
    return np.array(list(curve.values()), dtype=int), np.array(list(curve.values().values()))


def ends(curve: PublishedCurve) -> tuple[list[int], list[int]]:
    """The ten best and the ten worst layers, as far as they are known."""
    if curve.best or curve.worst:
        return list(curve.best[:NUM_ENDS]), list(curve.worst[:NUM_ENDS])
    values = curve.values()
    rising = sorted(values, key=lambda layer: values[layer])
    return (rising[: -NUM_ENDS - 1 : -1], rising[:NUM_ENDS]) if len(values) == curve.num_layers else ([], [])


def pairs(curve: PublishedCurve) -> np.ndarray:
    """Pairs of layers of which the first is known to contribute more; shape (2, pairs)."""
    best, worst = ends(curve)
    layers = range(curve.num_layers)
    above = [(one, other) for one in best for other in layers if other not in best]
    return np.array(above + [(other, one) for one in worst for other in layers if other not in worst]).T


def per_model(names: Sequence[str]) -> dict[str, float]:
    """Weights that let every model count the same, however many curves it has."""
    models = [CURVES[name].model for name in names]
    return {name: 1 / models.count(CURVES[name].model) for name in names}


def fit(names: Sequence[str], form: str = CHOSEN) -> np.ndarray:
    """Maximum likelihood: values are shape, own level and Gaussian noise; of pairs the order is known."""
    shape, start = FORMS[form]
    if not start:
        return np.array(start)
    weight = per_model(names)
    evidence = [(CURVES[name], known(CURVES[name]), pairs(CURVES[name]) if CURVES[name].best else None, weight[name])
                for name in names]  # fmt: skip

    def loss(parameters: np.ndarray) -> float:
        deviation, total = np.exp(parameters[-1]), 0.0
        for curve, (layers, values), order, one in evidence:
            shape_L = shape(depths(curve), parameters)
            if order is None:
                error_L = values - shape_L[layers]
                total += one * (error_L.var(ddof=1) / (2 * deviation**2) + np.log(deviation))
            else:
                total -= one * norm.logcdf((shape_L[order[0]] - shape_L[order[1]]) / (2**0.5 * deviation)).mean()
        return total

    found = minimize(loss, [*start, np.log(0.2)], method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-8})
    return np.append(np.abs(found.x[: len(start)]), np.exp(found.x[-1]))


def levels(names: Sequence[str], parameters: np.ndarray) -> list[float]:
    """Mean contribution of each model beyond the shape."""
    found: dict[str, list[float]] = {}
    for name in names:
        layers, values = known(CURVES[name])
        shape_L = FORMS[CHOSEN][0](depths(CURVES[name]), parameters)
        found.setdefault(CURVES[name].model, []).append(float(np.mean(values - shape_L[layers])))
    return [float(np.mean(each)) for each in found.values()]


def judge(name: str, shape_L: np.ndarray) -> dict[str, float]:
    """AUC of the known ends; where several values are known, correlation and what the first choice among them loses."""
    curve = CURVES[name]
    best, worst = ends(curve)
    layers, values = known(curve)
    found: dict[str, float | None] = {
        "AUC best": metrics.auc(shape_L, np.isin(range(curve.num_layers), best)),
        "AUC worst": metrics.auc(-shape_L, np.isin(range(curve.num_layers), worst)),
    }
    if len(values) >= MIN_KNOWN - 1:
        found["Pearson"] = metrics.pearson(shape_L[layers], values)
        found["regret"] = metrics.regret(shape_L[layers], values)
    return {metric: value for metric, value in found.items() if value is not None}


def mean(rows: Mapping[str, Mapping[str, float]], names: Sequence[str], metric: str) -> str:
    """The mean over models, such as '.85 (4)'; '-' if none has it."""
    having = [name for name in names if metric in rows[name]]
    weight = per_model(having)
    if not having:
        return "-"
    return f"{sum(weight[n] * rows[n][metric] for n in having) / sum(weight.values()):.2f} ({sum(weight.values()):.0f})"


def table(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")


def compare_forms() -> None:
    print("Every form with each family left out in turn: means over the models of RL (their number)")
    table("form", *METRICS, "regret on supervised LoRA")
    supervised = [name for name in CURVES if name not in RL]
    for label, form, names in (
        *((form, form, FITTED) for form in FORMS),
        (WITH_SUPERVISED, CHOSEN, FITTED + supervised),
    ):
        shape, left_out = FORMS[form][0], {family: fit(without(family, names), form) for family in FAMILIES}
        rows = {name: judge(name, shape(depths(curve), left_out[curve.family])) for name, curve in CURVES.items()}
        cells = [mean(rows, RL, metric) for metric in METRICS]
        print(f"| {label} | {' | '.join(cells)} | {mean(rows, supervised, 'regret')} |")


def judge_prior() -> None:
    """Judges every curve by a fit to other families, and prints the constants that follow from its errors."""
    print(f"\n{CHOSEN}: every curve with its family left out")
    table("curve", "family", "first choice", *METRICS, "predicted (known) at layer")
    rows: dict[str, dict[str, float]] = {}
    errors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, curve in CURVES.items():
        others = without(curve.family)
        parameters = fit(others)
        shape_L, (layers, values) = FORMS[CHOSEN][0](depths(curve), parameters), known(curve)
        rows[name] = judge(name, shape_L)
        cells = [f"{rows[name][metric]:.2f}" if metric in rows[name] else "-" for metric in METRICS]
        level = np.mean(levels([other for other in others if other in WHOLE], parameters))
        predicted = shape_L[layers] + level
        if name in RL:
            errors[name] = depths(curve)[layers], values - predicted
        few = zip(layers, predicted, values, strict=True) if len(values) == 2 else ()
        cells.append("; ".join(f"{made:.2f} ({value:.2f}) at {layer}" for layer, made, value in few))
        print(f"| {name} | {curve.family} | {shape_L.argmax()} of {curve.num_layers} | {' | '.join(cells)} |")
    for family in FAMILIES:
        names = [name for name in RL if CURVES[name].family == family]
        if names:
            print(f"| mean (models) | {family} | | {' | '.join(mean(rows, names, metric) for metric in METRICS)} | |")

    weight = per_model(WHOLE)
    variance = np.average([errors[name][1].var() for name in WHOLE], weights=[weight[name] for name in WHOLE])
    level_sd = np.sqrt(np.mean([errors[name][1].mean() ** 2 for name in WHOLE]))
    depth, error = np.hstack(list(errors.values()))
    deviation = depth_prior.MIDDLE_SD + depth_prior.END_SD * np.abs(depth - depth_prior.RISE_END)
    held = np.mean(np.abs(error) <= depth_prior.NORMAL_80 * np.hypot(deviation, depth_prior.LEVEL_SD))
    regrets = [rows[name]["regret"] for name in WHOLE]
    parameters = fit(FITTED)
    level = np.mean(levels(WHOLE, parameters))
    mean_contribution = level + FORMS[CHOSEN][0](np.linspace(0, 1, 1001), parameters).mean()
    print("\nConstants of autolayer/core/depth_prior.py:")
    print(f"RISE, FALL, FALL_DEPTH = {', '.join(f'{value:.2f}' for value in parameters[:3])}")
    print(f"LEVEL = {level:.2f}; MEAN_CONTRIBUTION = {mean_contribution:.2f}")
    print(f"DEVIATION, LEVEL_SD = {variance**0.5:.2f}, {level_sd:.2f}")
    print(f"80% intervals hold {held:.0%} of {len(error)} layers left out")
    print(f"REGRET = {mean(rows, WHOLE, 'regret').split()[0]}, {min(regrets):.2f}, {max(regrets):.2f}")


if __name__ == "__main__":
    compare_forms()
    judge_prior()
