"""Curves over layers: the two records that `compare` works on, CSV files, and the published curve by name.

Layers are integers and numbers are finite; anything else is refused with its place in the file. JSON files and run
folders are read in sources.py. No torch.
"""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

from autolayer.core.errors import DataError, unknown

Band = dict[int, tuple[float, float]]
"""Layer -> low and high."""

DATA = Path(__file__).parent.parent / "data" / "published"
PUBLISHED_PREFIX = "published:"
BENCHMARKS = ("math500", "gsm8k", "olympiad", "amc")
"""Columns of the published table whose unweighted mean is the score S (arXiv 2607.01232)."""
ACCEPTED_SOURCES = (
    f"a run folder, a contribution.json, a CSV with the columns layer and contribution, or {PUBLISHED_PREFIX}qwen3-1.7b"
)


@dataclass(frozen=True, kw_only=True)
class CurveOrigin:
    """The setting in which a curve was measured or predicted; None where the file does not say."""

    source: str
    model: str | None = None
    task: str | None = None
    algorithm: str | None = None
    num_layers: int | None = None

    @property
    def setting(self) -> str:
        """'tiny, math:arith, grpo', or the file."""
        return ", ".join(filter(None, (self.model, self.task, self.algorithm))) or self.source


PUBLISHED = {
    "qwen3-1.7b": CurveOrigin(
        source="published:qwen3-1.7b", model="Qwen/Qwen3-1.7B-Base", task="math", algorithm="grpo", num_layers=28
    )
}
"""Name -> what the file of this name in data/published holds; its README says where from."""
PUBLISHED_NOTE = (
    "one training run a layer, transcribed by a third party and without error bars; evaluation sampling alone moves a "
    "contribution by about 0.12, so no prediction can be expected to rank it better than about 0.87"
)


@dataclass(frozen=True, kw_only=True)
class PredictedCurve:
    """Scores per layer; higher means more contribution."""

    origin: CurveOrigin
    values: dict[int, float]
    band: Band | None = None
    """80% interval of each layer."""
    probes: dict[str, dict[int, float]] = field(default_factory=dict)
    is_contribution: bool = True
    """True for values in units of contribution, False for a scale of their own."""
    is_measured: bool = False
    """True for the measured values of one file, taken as prediction for another."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCurve:
    """Contribution per layer."""

    origin: CurveOrigin
    values: dict[int, float]
    band: Band | None = None
    level: float = 0.95
    by_seed: dict[int, tuple[float, ...]] | None = None
    """One contribution per training seed; None where a single value is known."""
    ceiling: float | None = None
    notes: tuple[str, ...] = ()
    """Remarks for the reader of a comparison."""

    @property
    def errors(self) -> dict[int, float] | None:
        """Standard errors, from the intervals."""
        if self.band is None:
            return None
        width = 2 * float(stats.norm.ppf((1 + self.level) / 2))
        return {layer: (high - low) / width for layer, (low, high) in self.band.items()}


def published(name: str) -> MeasuredCurve:
    """Returns a published curve.

    Args:
        name: With or without 'published:' in front.

    Raises:
        UnknownNameError: There is none of this name.
    """
    name = name.removeprefix(PUBLISHED_PREFIX)
    if name not in PUBLISHED:
        raise unknown("published curve", PUBLISHED_PREFIX + name, [PUBLISHED_PREFIX + known for known in PUBLISHED])
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    score = {row["setting"]: sum(float(row[column]) for column in BENCHMARKS) / len(BENCHMARKS) for row in rows}
    base, full = score["Base"], score["Full"]
    values = {int(row["layer"]): (score[row["setting"]] - base) / (full - base) for row in rows if row["layer"]}
    return MeasuredCurve(origin=PUBLISHED[name], values=values, notes=(PUBLISHED_NOTE,))


def from_csv(text: str, path: Path) -> PredictedCurve | MeasuredCurve:
    """Reads a table with a header: layer; contribution or predicted; low and high if there are intervals.

    Returns:
        The column `contribution` makes it measured (intervals of 95%), `predicted` a prediction (of 80%).

    Raises:
        DataError: The table has another form. The message names the line.
    """
    if "\0" in text:
        raise DataError(f"{path} is not a text file: give {ACCEPTED_SOURCES}.")
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    kinds = [name for name in columns if name in ("contribution", "predicted")]
    if columns.count("layer") != 1 or len(kinds) != 1:
        raise DataError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: it needs a header with layer and either "
            "contribution or predicted, and may have low and high."
        )
    ends = [name for name in ("low", "high") if name in columns]
    if len(ends) == 1:
        raise DataError(f"{path} has {ends[0]} alone: an interval needs both low and high.")
    values: dict[int, float] = {}
    band: dict[int, tuple[float | None, float | None]] = {}
    for row in reader:
        place = f"{path}, line {reader.line_num}"
        layer = _layer(row["layer"], place)
        if layer in values:
            raise DataError(f"{place}: layer {layer} stands there twice: keep one row a layer.")
        values[layer], *interval = (_number(row[name], place, name) for name in (kinds[0], *ends))
        if interval and interval[0] > interval[1]:
            raise DataError(f"{place}: low {interval[0]} is above high {interval[1]}: exchange them.")
        band[layer] = (interval[0], interval[1]) if interval else (None, None)
    if not values:
        raise DataError(f"{path} has a header and no rows: give one row a layer.")
    origin, values = CurveOrigin(source=str(path)), dict(sorted(values.items()))
    if kinds[0] == "contribution":
        return MeasuredCurve(origin=origin, values=values, band=whole_band(band))
    return PredictedCurve(origin=origin, values=values, band=whole_band(band), is_contribution=bool(ends))


def _layer(text: str | None, place: str) -> int:
    try:
        layer = int(text or "")
    except ValueError:
        layer = -1
    if layer < 0:
        raise DataError(f"{place}: layer {text!r} is no whole number from 0: layers count from the embedding.")
    return layer


def _number(text: str | None, place: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {column} {text!r} is not a finite number: correct it, or leave the row out.")
    return value


def whole_band(ends: dict[int, tuple[float | None, float | None]]) -> Band | None:
    """Returns the intervals if every layer has one, else None: half of them cannot be judged."""
    known = {layer: (low, high) for layer, (low, high) in ends.items() if low is not None and high is not None}
    return known if len(known) == len(ends) else None
