"""`compare`: predicted against measured contribution, judged against the noise ceiling and every baseline. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from autolayer.comparison import figure, metrics, resampling, verdicts
from autolayer.comparison.comparison import (
    COMPARISON_FILE,
    METRICS,
    Comparison,
    JudgedRanking,
    Judgement,
    LayerPoint,
    MeanJudgement,
)
from autolayer.comparison.curves import ACCEPTED_SOURCES, MeasuredCurve, PredictedCurve
from autolayer.comparison.sources import read_measured, read_predicted
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
    if out is not None:
        _check_out(Path(out))
    prediction, curves = read_predicted(predicted), [read_measured(source) for source in measured]
    for place, curve in enumerate(curves):
        if any(curve.values == earlier.values for earlier in curves[:place]):
            raise DataError(f"{curve.origin.source} is given twice: leave it out once, every file counts once.")
    num_layers, assumed = _num_layers(prediction, curves)
    judged = tuple(_judge(prediction, curve, num_layers, assumed) for curve in curves)
    found = Comparison(comparisons=judged, mean=_mean(judged) if len(judged) > 1 else None)
    if out is not None:
        RunFolder(out).write(COMPARISON_FILE, found.to_dict())
        figure.write_figure(found, Path(out))
    return found


def _check_out(folder: Path) -> None:
    """Checks `out` before the work, so that nothing is left half done."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: give a folder.")
    figure.check_matplotlib()


def _num_layers(predicted: PredictedCurve, curves: Sequence[MeasuredCurve]) -> tuple[int, bool]:
    """Returns the model's number of blocks, on which all files must agree, and whether it had to be assumed."""
    every = [predicted, *curves]
    known = {curve.origin.num_layers: curve.origin.source for curve in every if curve.origin.num_layers is not None}
    if len(known) > 1:
        (one, first), (other, second), *_ = known.items()
        raise DataError(
            f"{first} is of a model with {one} layers and {second} of one with {other}: layers of different models "
            "have no counterparts, compare files of one model."
        )
    if not known:
        return 1 + max(max(curve.values) for curve in every), True
    ((num_layers, source),) = known.items()
    for curve in every:
        if max(curve.values) >= num_layers:
            raise DataError(
                f"{curve.origin.source} has layer {max(curve.values)}, but {source} is of a model with {num_layers} "
                f"layers (0..{num_layers - 1}): compare files of one model."
            )
    return num_layers, False


def _judge(predicted: PredictedCurve, measured: MeasuredCurve, num_layers: int, assumed: bool) -> Judgement:
    layers = sorted(predicted.values.keys() & measured.values.keys())
    if len(layers) < MIN_COMMON_LAYERS:
        raise DataError(
            f"{predicted.origin.source} and {measured.origin.source} have {len(layers)} layers in common, fewer than "
            f"{MIN_COMMON_LAYERS}: on so few any ranking may be right by chance; predict and measure more --layers."
        )
    same_curve = predicted.is_measured and predicted.values == measured.values
    judgement = Judgement(
        predicted=predicted.origin.source,
        measured=measured.origin.source,
        predicted_for=predicted.origin.setting,
        measured_on=measured.origin.setting,
        num_layers=num_layers,
        only_predicted=tuple(sorted(predicted.values.keys() - measured.values.keys())),
        only_measured=tuple(sorted(measured.values.keys() - predicted.values.keys())),
        num_seeds=len(measured.by_seed[layers[0]]) if measured.by_seed else 1,
        in_sample=measured.by_seed is None,
        level=measured.level,
        ceiling=measured.ceiling,
        is_contribution=predicted.is_contribution,
        points=tuple(_point(layer, predicted, measured, same_curve) for layer in layers),
        rows=_rows(predicted, measured, layers, num_layers, same_curve),
    )
    judgement = replace(judgement, notes=(*verdicts.notes(judgement, assumed), *measured.notes))
    return replace(judgement, verdict=verdicts.file_verdict(judgement))


def _point(layer: int, predicted: PredictedCurve, measured: MeasuredCurve, same_curve: bool) -> LayerPoint:
    low, high = measured.band[layer] if measured.band else (None, None)
    point = LayerPoint(layer=layer, measured=measured.values[layer], measured_low=low, measured_high=high)
    if same_curve:  # a curve is no prediction of itself
        return point
    low, high = predicted.band[layer] if predicted.band else (None, None)
    return replace(point, predicted=predicted.values[layer], predicted_low=low, predicted_high=high)


def _rows(
    predicted: PredictedCurve, measured: MeasuredCurve, layers: list[int], num_layers: int, same_curve: bool
) -> tuple[JudgedRanking, ...]:
    """Judges the prediction, every baseline, and every single probe that scored all these layers."""
    judge = _RankingJudge(measured, layers)
    probes = {
        name: np.array([scores[layer] for layer in layers])
        for name, scores in predicted.probes.items()
        if name not in BASELINES and set(layers) <= scores.keys()
    }
    rows = []
    if not same_curve:
        judge.prediction_L = np.array([predicted.values[layer] for layer in layers])
        band = np.array([predicted.band[layer] for layer in layers]).T if predicted.band else None
        rows.append(judge.row("prediction", "prediction", judge.prediction_L, band))
    rows.append(judge.random(depth_prior.level_interval(layers) if predicted.band else None))
    for name in depth_prior.DEPTH_BASELINES:
        # Of the depth baselines, only the published one has an estimate of its error.
        band = depth_prior.position_interval(layers, num_layers) if predicted.band and name == "position" else None
        rows.append(judge.row(name, "baseline", depth_prior.scores(name, layers, num_layers), band))
    return *rows, *(judge.row(name, "probe", scores_L) for name, scores_L in probes.items())


class _RankingJudge:
    """One measured curve over the compared layers, ready to judge any scores of them."""

    def __init__(self, measured: MeasuredCurve, layers: list[int]) -> None:
        by_seed, errors = measured.by_seed, measured.errors
        self.layers, self.ceiling = layers, measured.ceiling
        self.truth_L = np.array([measured.values[layer] for layer in layers])
        self.truth_S_L = np.array([by_seed[layer] for layer in layers]).T if by_seed else self.truth_L[None]
        self.errors_L = np.array([errors[layer] for layer in layers]) if errors else None
        self.prediction_L: np.ndarray | None = None

    def row(
        self,
        name: str,
        kind: Literal["prediction", "baseline", "probe"],
        scores_L: np.ndarray,
        band: Sequence[np.ndarray] | np.ndarray | None = None,
    ) -> JudgedRanking:
        spearman = metrics.spearman(scores_L, self.truth_L)
        return JudgedRanking(
            name=name,
            kind=kind,
            picks=tuple(self.layers[place] for place in metrics.picks(scores_L)),
            spearman=spearman,
            share_of_ceiling=spearman / self.ceiling if spearman is not None and self.ceiling else None,
            kendall=metrics.kendall(scores_L, self.truth_L),
            spearman_without_depth=metrics.spearman_without_depth(scores_L, self.truth_L, self.layers),
            kendall_without_depth=metrics.kendall_without_depth(scores_L, self.truth_L, self.layers),
            regret_top1=metrics.regret(scores_L, self.truth_S_L),
            regret_top3=metrics.regret(scores_L, self.truth_S_L, top=3),
            coverage=None if band is None else metrics.coverage(self.truth_L, band[0], band[1]),
            winkler=None if band is None else metrics.winkler(self.truth_L, band[0], band[1]),
            chance=None if spearman is None else resampling.chance(scores_L, self.truth_L),
            spearman_difference=None if kind == "prediction" or spearman is None else self._difference(scores_L),
        )

    def random(self, band: Sequence[np.ndarray] | None) -> JudgedRanking:
        """Returns expected values over random rankings; equal scores have the same regret as one drawn at random."""
        equal_L = np.zeros(len(self.layers))
        # Where the curve itself ranks nothing, a random ranking has no correlation with it either.
        ranked = metrics.spearman(self.truth_L, self.truth_L) is not None
        beyond_depth = metrics.spearman_without_depth(self.truth_L, self.truth_L, self.layers) is not None
        return replace(
            self.row("random", "baseline", equal_L, band),
            picks=(),
            spearman=0.0 if ranked else None,
            share_of_ceiling=0.0 if ranked and self.ceiling else None,
            kendall=0.0 if ranked else None,
            spearman_without_depth=0.0 if beyond_depth else None,
            kendall_without_depth=0.0 if beyond_depth else None,
            spearman_difference=self._difference(equal_L) if ranked else None,
        )

    def _difference(self, scores_L: np.ndarray) -> Interval | None:
        """Returns the prediction's Spearman minus another's; None without error bars, or for a constant prediction."""
        if self.errors_L is None or self.prediction_L is None:
            return None
        if metrics.spearman(self.prediction_L, self.truth_L) is None:
            return None
        return resampling.difference_under_noise(self.prediction_L, scores_L, self.truth_L, self.errors_L)


def _mean(judged: Sequence[Judgement]) -> MeanJudgement:
    by_name = [{row.name: row for row in judgement.rows} for judgement in judged]
    names = [name for name in by_name[0] if all(name in rows for rows in by_name)]
    prediction = [rows.get("prediction") for rows in by_name]
    rows = []
    for name in names:
        same = [rows[name] for rows in by_name]
        row = JudgedRanking(name=name, kind=same[0].kind)
        for metric in METRICS:
            values = [getattr(one, metric) for one in same]
            row = replace(row, **{metric: None if None in values else float(np.mean(values))})
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
