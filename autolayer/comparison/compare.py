"""`compare`: predicted against measured contribution, judged against the noise ceiling and every baseline. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autolayer.comparison import figure, metrics, resampling, verdicts
from autolayer.comparison.comparison import NUM_ENDS, Comparison, JudgedRanking, Judgement, LayerPoint
from autolayer.comparison.curves import ACCEPTED_SOURCES, Curve
from autolayer.comparison.sources import read_curve
from autolayer.core import depth_prior
from autolayer.core.errors import ConfigError, DataError
from autolayer.core.run_folder import RunFolder
from autolayer.reporting.contribution import Contribution
from autolayer.reporting.results import PickResult

MIN_COMMON_LAYERS = 4
"""Smallest number of common layers; of three layers, one random ranking in six is perfect."""


def compare(
    predicted: str | Path | PickResult | Contribution,
    *measured: str | Path | Contribution,
    out: str | Path | None = None,
) -> Comparison:
    """Judges a prediction of contribution by measured ones.

    Args:
        predicted: A run folder of `pick` (stopped after `probe` or later), result.json, contribution.json (its measured
            values and its probes are the predictions), a CSV file, or what `pick` or `measure` returned.
        measured: Run folders of `measure`, contribution.json or CSV files, 'published:NAME' (`autolayer compare
            --help` lists the names), or what `measure` returned; one comparison each.
        out: A folder to write comparison.json and the figure to.

    Returns:
        One judgement for each measured curve.

    Raises:
        AutolayerError: A file cannot be read, belongs to another model, or shares too few layers; or a figure is wanted
            and matplotlib is not installed.

    Example:
        found = autolayer.compare("runs/demo-seed-0", "published:qwen3-1.7b")
        print(found.comparisons[0].verdict)
    """
    if not measured:
        raise ConfigError(f"there is nothing to compare with: after the prediction give {ACCEPTED_SOURCES}.")
    if out is not None:  # before the work, so that nothing is left half done
        if Path(out).exists() and not Path(out).is_dir():
            raise ConfigError(f"--out {out} is a file: give a folder.")
        figure.check_matplotlib("--out")
    prediction, curves = read_curve(predicted), [read_curve(source) for source in measured]
    found = Comparison(comparisons=tuple(_judge(prediction, curve) for curve in curves))
    if out is not None:
        RunFolder(out).write(Comparison.FILE, found.to_dict())
        figure.write_figure(found, Path(out))
    return found


def _judge(predicted: Curve, measured: Curve) -> Judgement:
    if not measured.is_measured:
        raise DataError(
            f"{measured.source} holds a prediction, which cannot judge another one: after the prediction give "
            f"{ACCEPTED_SOURCES}."
        )
    if predicted.only_ends:
        raise DataError(
            f"{predicted.source} names only its best and worst layers, so it predicts nothing: give it after a "
            "prediction."
        )
    num_layers = _num_layers(predicted, measured)
    layers = sorted(predicted.layers & measured.layers)
    if len(layers) < MIN_COMMON_LAYERS:
        raise DataError(
            f"{predicted.source} and {measured.source} have {len(layers)} layers in common, fewer than "
            f"{MIN_COMMON_LAYERS}: on so few any ranking may be right by chance; predict and measure more --layers."
        )
    judgement = Judgement(
        predicted=predicted.source,
        measured=measured.source,
        predicted_for=predicted.setting,
        measured_on=measured.setting,
        num_layers=num_layers,
        num_seeds=len(measured.by_seed[layers[0]]) if measured.by_seed else 1,
        level=measured.level,
        ceiling=measured.ceiling,
        points=tuple(_point(layer, predicted, measured) for layer in layers),
        best=measured.best,
        worst=measured.worst,
        rows=_rows(predicted, measured, layers, num_layers),
        notes=(*verdicts.notes(predicted, measured), *measured.notes),
    )
    return replace(judgement, verdict=verdicts.verdict(judgement))


def _num_layers(predicted: Curve, measured: Curve) -> int:
    """Returns the model's number of blocks, on which the files must agree; if none says, the smallest possible one."""
    highest = max(*predicted.values, *measured.values)
    known = {curve.num_layers for curve in (predicted, measured) if curve.num_layers is not None}
    if len(known) > 1 or max(known, default=highest + 1) <= highest:
        raise DataError(
            f"{predicted.source} is of {predicted.size} and {measured.source} of {measured.size}: layers of different "
            "models have no counterparts, compare files of one model."
        )
    return known.pop() if known else highest + 1


def _is_itself(predicted: Curve, measured: Curve) -> bool:
    """Returns True if prediction and measurement are the same curve."""
    return predicted.is_measured and predicted.values == measured.values


def _prediction_band(predicted: Curve) -> dict[int, tuple[float, float]]:
    """Returns the prediction intervals; none for a measurement, whose intervals describe its own noise."""
    return {} if predicted.is_measured else dict(predicted.band or {})


def _point(layer: int, predicted: Curve, measured: Curve) -> LayerPoint:
    low, high = measured.band[layer] if measured.band else (None, None)
    point = LayerPoint(layer=layer, measured=measured.values.get(layer), measured_low=low, measured_high=high)
    if _is_itself(predicted, measured):
        return point
    low, high = _prediction_band(predicted).get(layer, (None, None))
    return replace(point, predicted=predicted.values[layer], predicted_low=low, predicted_high=high)


def _rows(predicted: Curve, measured: Curve, layers: list[int], num_layers: int) -> tuple[JudgedRanking, ...]:
    """Judges the prediction, every baseline, and every single probe that scored all these layers."""
    scores = {"random": np.zeros(len(layers))}
    scores |= {name: depth_prior.scores(name, layers, num_layers) for name in depth_prior.DEPTH_BASELINES}
    scores |= {
        name: np.array([scores_by_layer[layer] for layer in layers])
        for name, scores_by_layer in predicted.probes.items()
        if name not in depth_prior.BASELINES and set(layers) <= scores_by_layer.keys()
    }
    bands = {}
    if band := _prediction_band(predicted):
        # Of the depth baselines, only the published one has an estimate of its error.
        bands = {
            "prediction": np.array([band[layer] for layer in layers]).T,
            "random": depth_prior.level_interval(layers),
            "position": depth_prior.position_interval(layers, num_layers),
        }
    if _is_itself(predicted, measured):
        return tuple(_row(name, scores_L, bands.get(name), measured, layers) for name, scores_L in scores.items())
    prediction_L = np.array([predicted.values[layer] for layer in layers])
    prediction = _row("prediction", prediction_L, bands.get("prediction"), measured, layers)
    rows = [prediction]
    for name, scores_L in scores.items():
        row = _row(name, scores_L, bands.get(name), measured, layers)
        if measured.errors is not None and prediction.spearman is not None and row.spearman is not None:
            truth_L, errors_L = (np.array([of[layer] for layer in layers]) for of in (measured.values, measured.errors))
            difference = resampling.difference_under_noise(prediction_L, scores_L, truth_L, errors_L)
            row = replace(row, spearman_difference=difference)
        rows.append(row)
    return tuple(rows)


def _row(
    name: str, scores_L: np.ndarray, band: Sequence[np.ndarray] | None, measured: Curve, layers: list[int]
) -> JudgedRanking:
    """Judges one ranking; for `random`, by expected values over all rankings."""
    auc_best, auc_worst = _aucs(scores_L, measured, layers)
    row = JudgedRanking(
        name=name,
        kind="prediction" if name == "prediction" else "baseline" if name in depth_prior.BASELINES else "probe",
        picks=() if name == "random" else tuple(layers[place] for place in metrics.picks(scores_L)),
        auc_best=auc_best,
        auc_worst=auc_worst,
    )
    if measured.only_ends:
        return row
    truth_L = np.array([measured.values[layer] for layer in layers])
    truth_S_L = np.array([measured.by_seed[layer] for layer in layers]).T if measured.by_seed else truth_L[None]
    spearman = metrics.spearman(scores_L, truth_L)
    chance = None if spearman is None else resampling.chance(scores_L, truth_L)
    if name == "random":  # where the curve itself ranks nothing, a random ranking has no correlation with it either
        spearman = None if metrics.spearman(truth_L, truth_L) is None else 0.0
    return replace(
        row,
        spearman=spearman,
        share_of_ceiling=spearman / measured.ceiling if spearman is not None and measured.ceiling else None,
        pearson=metrics.pearson(scores_L, truth_L),
        regret=metrics.regret(scores_L, truth_S_L),  # equal scores have the regret of a layer drawn at random
        coverage=None if band is None else metrics.coverage(truth_L, band[0], band[1]),
        winkler=None if band is None else metrics.winkler(truth_L, band[0], band[1]),
        chance=chance,
    )


def _aucs(scores_L: np.ndarray, measured: Curve, layers: list[int]) -> tuple[float | None, float | None]:
    """Judges how a ranking places the best and the worst layers, as two areas under the ROC curve."""
    rising = sorted(layers, key=lambda layer: measured.values.get(layer, 0.0))
    count = min(NUM_ENDS, len(layers) // 2)
    ends = (measured.best, measured.worst) if measured.only_ends else (rising[::-1], rising)
    best_L, worst_L = (np.isin(layers, end[:count]) for end in ends)
    return metrics.auc(scores_L, best_L), metrics.auc(-scores_L, worst_L)
