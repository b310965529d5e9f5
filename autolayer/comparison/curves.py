"""Curves over layers, which `compare` works on: the record, and its two tables, CSV and published. No torch."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

from autolayer.core.errors import DataError, unknown

DATA = Path(__file__).parent.parent / "data" / "published"
PUBLISHED_PREFIX = "published:"
PUBLISHED = {"qwen3-1.7b": ("Qwen/Qwen3-1.7B-Base, math, grpo", 28)}
"""Setting and number of layers of each file in data/published, whose README names the sources."""
BENCHMARKS = ("math500", "gsm8k", "olympiad", "amc")
"""Columns of the published table whose unweighted mean is the score S (arXiv 2607.01232)."""
PUBLISHED_NOTE = (
    "one training run a layer, transcribed by a third party and without error bars; evaluation sampling alone moves a "
    "contribution by about 0.12, so no prediction can be expected to rank it better than about 0.87"
)
ACCEPTED_SOURCES = (
    f"a run folder, a contribution.json, a CSV with the columns layer and contribution, or {PUBLISHED_PREFIX}qwen3-1.7b"
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
    band: Mapping[int, tuple[float, float]] | None = None
    """Low and high of each layer: an interval of `level` if measured, of 80% if predicted."""
    level: float = 0.95
    by_seed: Mapping[int, tuple[float, ...]] | None = None
    """One contribution per training seed; None if a single value is known."""
    ceiling: float | None = None
    probes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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


def published(name: str) -> Curve:
    """Returns a published curve, by its name with or without 'published:' in front."""
    name = name.removeprefix(PUBLISHED_PREFIX)
    if name not in PUBLISHED:
        raise unknown("published curve", PUBLISHED_PREFIX + name, [PUBLISHED_PREFIX + known for known in PUBLISHED])
    setting, num_layers = PUBLISHED[name]
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    score = {row["setting"]: sum(float(row[column]) for column in BENCHMARKS) / len(BENCHMARKS) for row in rows}
    base, full = score["Base"], score["Full"]
    return Curve(
        source=PUBLISHED_PREFIX + name,
        setting=setting,
        num_layers=num_layers,
        values={int(row["layer"]): (score[row["setting"]] - base) / (full - base) for row in rows if row["layer"]},
        is_measured=True,
        notes=(PUBLISHED_NOTE,),
    )


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
