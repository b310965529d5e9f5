"""Readers for `compare`: run folders of `pick` and `measure`, their JSON files, CSV files, published curves.

Every reader returns one of the two records of curves.py. No torch.
"""

import json
from pathlib import Path

from autolayer.comparison.curves import (
    ACCEPTED_SOURCES,
    PUBLISHED_PREFIX,
    CurveOrigin,
    MeasuredCurve,
    PredictedCurve,
    from_csv,
    published,
    whole_band,
)
from autolayer.core.errors import DataError, RunFolderError
from autolayer.core.run_folder import RESULT
from autolayer.reporting import contribution, results
from autolayer.reporting.contribution import Contribution
from autolayer.reporting.results import PickResult


def read_predicted(source: str | Path | PickResult | Contribution) -> PredictedCurve:
    """Reads a prediction.

    Raises:
        AutolayerError: There is none, or it cannot be read.
    """
    found = source if isinstance(source, PickResult | Contribution) else _load(source)
    if isinstance(found, PickResult):
        return _of_result(found, _name(source, found))
    if isinstance(found, Contribution):
        layers, origin = list(found.layers), _origin(found, _name(source, found))
        probes = {name: dict(zip(layers, scores, strict=True)) for name, scores in found.probes.items()}
        return PredictedCurve(origin=origin, values=found.values, probes=probes, is_measured=True)
    return found if isinstance(found, PredictedCurve) else _as_prediction(found)


def read_measured(source: str | Path | Contribution) -> MeasuredCurve:
    """Reads a measured curve.

    Raises:
        AutolayerError: There is none, or it cannot be read.
    """
    found = source if isinstance(source, Contribution) else _load(source)
    if isinstance(found, MeasuredCurve):
        return found
    if isinstance(found, Contribution):
        return MeasuredCurve(
            origin=_origin(found, _name(source, found)),
            values=found.values,
            band={layer: (arm.low, arm.high) for layer, arm in found.layers.items()},
            level=found.level,
            by_seed=found.by_seed() if len(found.seeds) > 1 else None,
            ceiling=found.ceiling,
        )
    raise DataError(
        f"{source} holds a prediction, which cannot judge another one: after the prediction give {ACCEPTED_SOURCES}."
    )


def _load(source: str | Path) -> PickResult | Contribution | PredictedCurve | MeasuredCurve:
    if str(source).startswith(PUBLISHED_PREFIX):
        return published(str(source))
    path = Path(source)
    if path.is_dir():
        inside = [path / name for name in (contribution.CONTRIBUTION_FILE, RESULT) if (path / name).exists()]
        if not inside:
            raise DataError(
                f"{path} has neither {RESULT} nor {contribution.CONTRIBUTION_FILE}: give the folder of a finished "
                "`autolayer pick` (--until probe is enough) or `autolayer measure`."
            )
        path = inside[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give {ACCEPTED_SOURCES}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text file: give {ACCEPTED_SOURCES}.") from None
    if not text.lstrip().startswith(("{", "[")):
        return from_csv(text, path)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged JSON ({error}): give {ACCEPTED_SOURCES}.") from None
    if "ranking" not in values:
        return _contribution(path)
    try:
        return results.from_dict(values)
    except RunFolderError as error:
        raise DataError(f"{path}: {error}") from None


def _contribution(path: Path) -> Contribution:
    found = contribution.read(path)
    wrong = [layer for layer in found.layers if not 0 <= layer < found.num_layers]
    if wrong:
        raise DataError(f"{path} measures layers {wrong} of a model with {found.num_layers} blocks: measure again.")
    if sum(found.full.gains) <= 0:
        raise DataError(f"{path}: training all parameters gained nothing, so no layer has a share of it: train longer.")
    return found


def _of_result(result: PickResult, source: str) -> PredictedCurve:
    rows = {row.layer: row for row in result.ranking or () if row.predicted is not None}
    if not rows:
        raise DataError(f"{source} predicts nothing yet: repeat its `autolayer pick`, with --until probe or without.")
    return PredictedCurve(
        origin=_origin(result, source),
        values={layer: rows[layer].predicted or 0.0 for layer in sorted(rows)},
        band=whole_band({layer: (row.predicted_low, row.predicted_high) for layer, row in rows.items()}),
        probes={
            name: {layer: score for layer, score in enumerate(scores) if score is not None}
            for name, scores in (result.probes or {}).items()
        },
    )


def _as_prediction(measured: MeasuredCurve) -> PredictedCurve:
    """Returns a measured curve as prediction, without its intervals: they are about the measurement alone."""
    return PredictedCurve(origin=measured.origin, values=measured.values, is_measured=True)


def _origin(found: PickResult | Contribution, source: str) -> CurveOrigin:
    return CurveOrigin(
        source=source, model=found.model, task=found.task, algorithm=found.algorithm, num_layers=found.num_layers
    )


def _name(source: object, found: PickResult | Contribution) -> str:
    """Returns the name of a source for use in a sentence."""
    return str(source) if isinstance(source, str | Path) else f"{type(found).__name__} of {found.model}, {found.task}"
