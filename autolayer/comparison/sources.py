"""Reads what `compare` is given: run folders of `pick` and `measure`, their JSON files, CSV files, published curves."""

from pathlib import Path

from autolayer.comparison.curves import ACCEPTED_SOURCES, PUBLISHED_PREFIX, Curve, from_csv
from autolayer.comparison.published import published
from autolayer.core.errors import DataError
from autolayer.reporting.contribution import Contribution
from autolayer.reporting.results import PickResult


def read_curve(source: str | Path | PickResult | Contribution) -> Curve:
    """Reads a measured or predicted curve."""
    found = source if isinstance(source, PickResult | Contribution) else _load(source)
    if isinstance(found, Curve):
        return found
    setting = f"{found.model}, {found.task}, {found.algorithm}"
    name = str(source) if isinstance(source, str | Path) else type(found).__name__
    if isinstance(found, PickResult):
        return _of_result(found, name, setting)
    layers = list(found.layers)
    return Curve(
        source=name,
        setting=setting,
        num_layers=found.num_layers,
        values=found.values,
        is_measured=True,
        band={layer: (arm.low, arm.high) for layer, arm in found.layers.items()},
        level=found.level,
        by_seed=found.by_seed() if len(found.seeds) > 1 else None,
        ceiling=found.ceiling,
        probes={probe: dict(zip(layers, scores, strict=True)) for probe, scores in found.probes.items()},
    )


def _load(source: str | Path) -> PickResult | Contribution | Curve:
    if str(source).startswith(PUBLISHED_PREFIX):
        return published(str(source))
    path = Path(source)
    if path.is_dir():
        inside = [path / name for name in (Contribution.FILE, PickResult.FILE) if (path / name).exists()]
        if not inside:
            raise DataError(
                f"{path} has neither {PickResult.FILE} nor {Contribution.FILE}: give the folder of a finished "
                "`autolayer pick` (--until probe is enough) or `autolayer measure`."
            )
        return (Contribution if inside[0].name == Contribution.FILE else PickResult).read(path)
    for record in (Contribution, PickResult):
        if path.name == record.FILE:  # also when it is so damaged that it does not look like JSON
            return record.read(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give {ACCEPTED_SOURCES}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text file: give {ACCEPTED_SOURCES}.") from None
    if not text.lstrip().startswith(("{", "[")):
        return from_csv(text, path)
    return (PickResult if '"ranking":' in text else Contribution).from_json(text, path)


def _of_result(result: PickResult, source: str, setting: str) -> Curve:
    rows = sorted((row for row in result.ranking or () if row.predicted is not None), key=lambda row: row.layer)
    if not rows:
        raise DataError(f"{source} predicts nothing yet: repeat its `autolayer pick`, with --until probe or without.")
    ends = {row.layer: (row.predicted_low, row.predicted_high) for row in rows}
    band = {layer: (low, high) for layer, (low, high) in ends.items() if low is not None and high is not None}
    return Curve(
        source=source,
        setting=setting,
        num_layers=result.num_layers,
        values={row.layer: row.predicted or 0.0 for row in rows},
        is_measured=False,
        band=band if len(band) == len(rows) else None,
        probes={
            name: {layer: score for layer, score in enumerate(scores) if score is not None}
            for name, scores in (result.probes or {}).items()
        },
    )
