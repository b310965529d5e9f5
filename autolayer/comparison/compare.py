"""`compare`: predicted against measured contribution, judged against the noise ceiling and every baseline. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autolayer.comparison import figure, metrics, resampling, verdicts
from autolayer.comparison.comparison import (
    METRICS,
    Comparison,
    JudgedRanking,
    Judgement,
    LayerPoint,
    MeanJudgement,
)
from autolayer.comparison.curves import ACCEPTED_SOURCES, Curve
from autolayer.comparison.sources import read_curve
from autolayer.core import depth_prior
from autolayer.core.errors import ConfigError, DataError
from autolayer.core.run_folder import RunFolder
from autolayer.core.statistics import Interval
from autolayer.reporting.contribution import Contribution
from autolayer.reporting.results import PickResult

MIN_COMMON_LAYERS = 4
"""Smallest number of common layers. With three, one random ranking in six is perfect."""
MIN_FILES_FOR_INTERVAL = 3
"""Files needed for an interval over files."""
BASELINES = ("random", *depth_prior.DEPTH_BASELINES)


def compare(
    predicted: str | Path | PickResult | Contribution,
    *measured: str | Path | Contribution,
    out: str | Path | None = None,
) -> Comparison:
    """Judges a prediction of contribution by measured ones.

    Args:
        predicted: A run folder of `pick` (stopped after `probe` or later), result.json, contribution.json (its
            measured values and its probes are the predictions), a CSV file, or what `pick` or `measure` returned.
        measured: Run folders of `measure`, contribution.json or CSV files, 'published:qwen3-1.7b', or what `measure`
            returned; one comparison each.
        out: A folder to write comparison.json and the figure to.

    Returns:
        One judgement for each measured curve, and their mean if there are several.

    Raises:
        AutolayerError: A file cannot be read, belongs to another model, or shares too few layers; or a figure is
            wanted and matplotlib is not installed.

    Example:
        found = autolayer.compare("runs/demo-seed-0", "published:qwen3-1.7b")
        print(found.comparisons[0].verdict)
    """
    if not measured:
        raise ConfigError(f"there is nothing to compare with: after the prediction give {ACCEPTED_SOURCES}.")
    if out is not None:  # before the work, so that nothing is left half done
        if Path(out).exists() and not Path(out).is_dir():
            raise ConfigError(f"--out {out} is a file: give a folder.")
        figure.check_matplotlib()
    prediction, curves = read_curve(predicted), [read_curve(source) for source in measured]
    for place, curve in enumerate(curves):
        if not curve.is_measured:
            raise DataError(
                f"{curve.source} holds a prediction, which cannot judge another one: after the prediction give "
                f"{ACCEPTED_SOURCES}."
            )
        if any(curve.values == earlier.values for earlier in curves[:place]):
            raise DataError(f"{curve.source} is given twice: leave it out once, every file counts once.")
    num_layers, assumed = _num_layers([prediction, *curves])
    judged = tuple(_judge(prediction, curve, num_layers, assumed) for curve in curves)
    found = Comparison(comparisons=judged, mean=_mean(judged) if len(judged) > 1 else None)
    if out is not None:
        RunFolder(out).write(Comparison.FILE, found.to_dict())
        figure.write_figure(found, Path(out))
    return found


def _num_layers(curves: Sequence[Curve]) -> tuple[int, bool]:
    """Returns the model's number of blocks, on which all files must agree, and whether it had to be assumed."""
    known = {curve.num_layers: curve.source for curve in curves if curve.num_layers is not None}
    if len(known) > 1:
        (one, first), (other, second), *_ = known.items()
        raise DataError(
            f"{first} is of a model with {one} layers and {second} of one with {other}: layers of different models "
            "have no counterparts, compare files of one model."
        )
    for num_layers, source in known.items():
        for curve in curves:
            if max(curve.values) >= num_layers:
                raise DataError(
                    f"{curve.source} has layer {max(curve.values)}, but {source} is of a model with {num_layers} "
                    f"layers (0..{num_layers - 1}): compare files of one model."
                )
    return next(iter(known), 1 + max(max(curve.values) for curve in curves)), not known


def _judge(predicted: Curve, measured: Curve, num_layers: int, assumed: bool) -> Judgement:
    layers = sorted(predicted.values.keys() & measured.values.keys())
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
        rows=_rows(predicted, measured, layers, num_layers),
        notes=(*verdicts.notes(predicted, measured, num_layers, assumed), *measured.notes),
    )
    return replace(judgement, verdict=verdicts.file_verdict(judgement))


def _is_itself(predicted: Curve, measured: Curve) -> bool:
    """A measured curve may predict another one, but not itself."""
    return predicted.is_measured and predicted.values == measured.values


def _prediction_band(predicted: Curve) -> dict[int, tuple[float, float]]:
    """The intervals of a measured curve that serves as prediction are about its own measurement."""
    return {} if predicted.is_measured else dict(predicted.band or {})


def _point(layer: int, predicted: Curve, measured: Curve) -> LayerPoint:
    low, high = measured.band[layer] if measured.band else (None, None)
    point = LayerPoint(layer=layer, measured=measured.values[layer], measured_low=low, measured_high=high)
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
        if name not in BASELINES and set(layers) <= scores_by_layer.keys()
    }
    bands: dict[str, Sequence[np.ndarray]] = {}
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
    truth_L = np.array([measured.values[layer] for layer in layers])
    truth_S_L = np.array([measured.by_seed[layer] for layer in layers]).T if measured.by_seed else truth_L[None]
    spearman = metrics.spearman(scores_L, truth_L)
    beyond_depth = metrics.spearman_without_depth(scores_L, truth_L, layers)
    chance = None if spearman is None else resampling.chance(scores_L, truth_L)
    if name == "random":  # where the curve itself ranks nothing, a random ranking has no correlation with it either
        spearman = None if metrics.spearman(truth_L, truth_L) is None else 0.0
        beyond_depth = None if metrics.spearman_without_depth(truth_L, truth_L, layers) is None else 0.0
    return JudgedRanking(
        name=name,
        kind="prediction" if name == "prediction" else "baseline" if name in BASELINES else "probe",
        picks=() if name == "random" else tuple(layers[place] for place in metrics.picks(scores_L)),
        spearman=spearman,
        share_of_ceiling=spearman / measured.ceiling if spearman is not None and measured.ceiling else None,
        spearman_without_depth=beyond_depth,
        # Equal scores have the regret of a layer drawn at random.
        regret_top1=metrics.regret(scores_L, truth_S_L),
        regret_top3=metrics.regret(scores_L, truth_S_L, top=3),
        coverage=None if band is None else metrics.coverage(truth_L, band[0], band[1]),
        winkler=None if band is None else metrics.winkler(truth_L, band[0], band[1]),
        chance=chance,
    )


def _mean(judged: Sequence[Judgement]) -> MeanJudgement:
    by_name = [{row.name: row for row in judgement.rows} for judgement in judged]
    prediction, rows = [rows.get("prediction") for rows in by_name], []
    for name in [name for name in by_name[0] if all(name in rows for rows in by_name)]:
        same = [rows[name] for rows in by_name]
        values = {metric: [getattr(row, metric) for row in same] for metric in METRICS}
        means = {metric: None if None in found else float(np.mean(found)) for metric, found in values.items()}
        row = JudgedRanking(name=name, kind=same[0].kind, **means)
        if row.kind != "prediction":
            row = replace(row, spearman_difference=_over_files(prediction, same, "spearman"),
                          regret_difference=_over_files(prediction, same, "regret_top1"))  # fmt: skip
        rows.append(row)
    mean = MeanJudgement(num_comparisons=len(judged), rows=tuple(rows), notes=verdicts.mean_notes(judged))
    return replace(mean, verdict=verdicts.mean_verdict(mean))


def _over_files(
    prediction: Sequence[JudgedRanking | None], rows: Sequence[JudgedRanking], metric: str
) -> Interval | None:
    """Returns prediction minus a row, paired by file; None with too few files, or if one does not know the value."""
    pairs = [(getattr(one, metric, None), getattr(other, metric)) for one, other in zip(prediction, rows, strict=True)]
    if len(pairs) < MIN_FILES_FOR_INTERVAL or any(None in pair for pair in pairs):
        return None
    return resampling.bootstrap_interval([one - other for one, other in pairs])
