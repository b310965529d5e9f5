"""Curves over layers, which `compare` works on: the record, and the CSV table that holds one. No torch."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

from autolayer.core.errors import DataError

PUBLISHED_PREFIX = "published:"
ACCEPTED_SOURCES = (
    f"a run folder, a contribution.json, a CSV with the columns layer and contribution, or {PUBLISHED_PREFIX}NAME "
    "(`autolayer compare --help` lists the names)"
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value per layer: measured contribution, or scores of which higher means more contribution."""

    source: str
    setting: str
    """Model, task and algorithm, or the source if it does not say."""
    num_layers: int | None = None
    """Blocks of the model; None if the source does not say."""
    values: Mapping[int, float]
    is_measured: bool
    best: tuple[int, ...] = ()
    """The best layers in order, if a source names only these and the worst ones; `values` has few layers then."""
    worst: tuple[int, ...] = ()
    """The worst layers in order, the worst one first, of such a source."""
    band: Mapping[int, tuple[float, float]] | None = None
    """Low and high of each layer: an interval of `level` if measured, of 80% if predicted."""
    level: float = 0.95
    by_seed: Mapping[int, tuple[float, ...]] | None = None
    """One contribution per training seed; None if a single value is known."""
    ceiling: float | None = None
    probes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def only_ends(self) -> bool:
        """True if only the best and the worst layers are known."""
        return bool(self.best or self.worst)

    @property
    def layers(self) -> set[int]:
        """The layers that something is known about: all of them where the best and the worst are known."""
        return set(range(self.num_layers or 0)) if self.only_ends else set(self.values)

    @property
    def size(self) -> str:
        """The number of layers of the model, for a sentence."""
        return f"a model with {self.num_layers or 'at least ' + str(1 + max(self.values))} layers"

    @property
    def errors(self) -> dict[int, float] | None:
        """Standard errors, from the intervals."""
        if self.band is None:
            return None
        width = 2 * float(stats.norm.ppf((1 + self.level) / 2))
        return {layer: (high - low) / width for layer, (low, high) in self.band.items()}


def from_csv(text: str, path: Path) -> Curve:
    """Reads a table with a header: layer; contribution or predicted; low and high if there are intervals.

    The column `contribution` makes it measured (intervals of 95%), `predicted` a prediction (of 80%).
    """
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    kinds = [name for name in columns if name in ("contribution", "predicted")]
    ends = [name for name in ("low", "high") if name in columns]
    if columns.count("layer") != 1 or len(kinds) != 1 or len(ends) == 1:
        raise DataError(
            f"{path} has the columns {columns}: it needs a header with layer and either "
            "contribution or predicted, and may have both low and high."
        )
    values: dict[int, float] = {}
    band: dict[int, tuple[float, float]] = {}
    for row in reader:
        place = f"{path}, line {reader.line_num}"
        layer = _number(row, "layer", place)
        if layer < 0 or layer % 1:
            raise DataError(f"{place}: layer {row['layer']!r} is no whole number from 0.")
        if layer in values:
            raise DataError(f"{place}: layer {layer:g} stands there twice: keep one row a layer.")
        values[int(layer)] = _number(row, kinds[0], place)
        if ends:
            low, high = band[int(layer)] = _number(row, "low", place), _number(row, "high", place)
            if low > high:
                raise DataError(f"{place}: low {low} is above high {high}: exchange them.")
    if not values:
        raise DataError(f"{path} has a header and no rows: give one row a layer.")
    return Curve(
        source=str(path),
        setting=str(path),
        values=dict(sorted(values.items())),
        is_measured=kinds[0] == "contribution",
        band=band or None,
    )


def _number(row: Mapping[str, str | None], column: str, place: str) -> float:
    try:
        value = float(row[column] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {column} {row[column]!r} is not a finite number: correct it, or leave the row out.")
    return value
