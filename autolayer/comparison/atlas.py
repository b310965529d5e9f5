"""`atlas`: many measured contributions as one table, each with its source. No torch.

A layer's relative depth is its index over that of the last layer, so that models of different depth share an axis.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autolayer.comparison import metrics
from autolayer.comparison.curves import PUBLISHED_PREFIX, Curve
from autolayer.comparison.published import published_curves
from autolayer.comparison.sources import read_curve
from autolayer.core import depth_prior
from autolayer.core.errors import ConfigError, DataError
from autolayer.core.whole_files import write_whole
from autolayer.reporting.contribution import Contribution
from autolayer.reporting.records import FileRecord

ALL_PUBLISHED = f"{PUBLISHED_PREFIX}all"
ACCEPTED = f"a contribution.json, a folder of them, {ALL_PUBLISHED} or {PUBLISHED_PREFIX}NAME"


@dataclass(frozen=True, kw_only=True)
class AtlasEntry:
    """One measured curve. None stands for what its source does not say."""

    source: str
    """The file, or the name of a published curve."""
    setting: str
    """Model, task and algorithm."""
    num_layers: int
    """Blocks of the model."""
    num_seeds: int
    """With 1, the best layer was chosen on the numbers that it is scored on."""
    best_layer: int | None = None
    """The measured layer with the largest contribution."""
    best_depth: float | None = None
    """Its relative depth: 0 for the layer next to the embedding, 1 for the last one."""
    contribution: float | None = None
    """Its contribution."""
    low: float | None = None
    high: float | None = None
    level: float
    """Coverage of the interval from `low` to `high`."""
    middle: float | None = None
    """Contribution of the middle layer, `num_layers // 2`."""
    prior_regret: float | None = None
    """Contribution lost by training, of the measured layers, the one that the depth prior puts first. With several
    seeds it is computed on held-out seeds and may be below 0."""
    only_ends: bool
    """True if the source names only its best or worst layers, of which `values` may then have some."""
    values: dict[int, float]
    """Contribution of each measured layer."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Atlas(FileRecord):
    """The record that `autolayer atlas --json` prints: entries in the order of the sources."""

    FILE = "atlas.json"

    schema_version: int = 1
    entries: tuple[AtlasEntry, ...] = field(default=())


def make_atlas(sources: Iterable[str | Path | Curve]) -> Atlas:
    """Collects measured curves. What is given twice is there once.

    Args:
        sources: contribution.json files; folders, which are searched for them to any depth, or, where none has this
            name, for .json files directly in them; 'published:NAME' or 'published:all'; or curves of a known model.

    Raises:
        DataError: A source is damaged or of another kind; the message names it.
    """
    curves = {}
    for source in sources:
        for one in [source] if isinstance(source, Curve) else _expand(source):
            curve = one if isinstance(one, Curve) else _read(one)
            curves.setdefault(curve.source, curve)
    if not curves:
        raise ConfigError(f"there is nothing to collect: give {ACCEPTED}.")
    return Atlas(entries=tuple(map(_entry, curves.values())))


def _expand(source: str | Path) -> Iterator[str | Path]:
    if str(source) == ALL_PUBLISHED:
        yield from (PUBLISHED_PREFIX + name for name in published_curves())
    elif Path(source).is_dir():
        found = sorted(Path(source).rglob(Contribution.FILE)) or sorted(Path(source).glob("*.json"))
        if not found:
            raise DataError(f"{source} has no {Contribution.FILE} in it or below: give {ACCEPTED}.")
        yield from found
    else:
        yield source if str(source).startswith(PUBLISHED_PREFIX) else Path(source)


def _read(source: str | Path) -> Curve:
    """Reads one curve; LayerBench's files hold the record of `measure` under the key 'contribution'."""
    if isinstance(source, str) or source.name == Contribution.FILE:
        return read_curve(source)
    try:
        values = json.loads(source.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{source} does not exist: give {ACCEPTED}.") from None
    except ValueError:
        raise DataError(f"{source} is damaged, or no JSON: give {ACCEPTED}.") from None
    if isinstance(values, dict):
        values = values.get("contribution", values)
    if not isinstance(values, dict) or not {"full", "layers"} <= values.keys():
        raise DataError(f"{source} holds no measured contribution: give {ACCEPTED}.")
    return replace(read_curve(Contribution.from_dict(values, source)), source=str(source))


def _entry(curve: Curve) -> AtlasEntry:
    num_layers, values = curve.num_layers or 0, dict(curve.values)
    entry = AtlasEntry(
        source=curve.source,
        setting=curve.setting,
        num_layers=num_layers,
        num_seeds=len(next(iter(curve.by_seed.values()))) if curve.by_seed else 1,
        level=curve.level,
        middle=values.get(num_layers // 2),
        only_ends=curve.only_ends,
        values=values,
        notes=curve.notes,
    )
    if not curve.only_ends:
        layers = list(values)
        truth_S_L = np.array([curve.by_seed[layer] if curve.by_seed else (values[layer],) for layer in layers]).T
        prior_L = depth_prior.scores("position", layers, num_layers)
        entry = replace(entry, prior_regret=metrics.regret(prior_L, truth_S_L) if len(layers) > 1 else None)
    best = next(iter(curve.best), None) if curve.only_ends else max(values, key=lambda layer: values[layer])
    if best is None:
        return entry
    low, high = (curve.band or {}).get(best, (None, None))
    depth = best / max(1, num_layers - 1)
    return replace(entry, best_layer=best, best_depth=depth, contribution=values.get(best), low=low, high=high)


COLUMNS = ("setting", "layers", "best", "depth", "contribution", "middle", "prior loses", "source")


def cells(entry: AtlasEntry) -> tuple[str, ...]:
    """Returns an entry's texts, one for each of `COLUMNS`; '-' stands for what is not known."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"

    interval = "" if entry.low is None else f" [{number(entry.low)}, {number(entry.high)}]"
    measured = "ends" if entry.only_ends else f"{len(entry.values)}/{entry.num_layers}"
    return (entry.setting, measured, "-" if entry.best_layer is None else str(entry.best_layer),
            number(entry.best_depth), number(entry.contribution) + interval, number(entry.middle),
            number(entry.prior_regret), entry.source)  # fmt: skip


def write_table(found: Atlas, path: Path) -> None:
    """Writes the table as Markdown or, to any other name, as CSV."""
    rows = [COLUMNS, *map(cells, found.entries)]

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if path.suffix != ".md":
                return csv.writer(file, lineterminator="\n").writerows(rows)
            lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows]
            lines.insert(1, " | ".join("---" for _ in COLUMNS))
            file.writelines(f"| {line} |\n" for line in lines)

    write_whole(path, write)
