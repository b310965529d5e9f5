"""The records behind comparison.json. None stands for a value that does not exist. No torch."""

from dataclasses import dataclass
from typing import Literal

from autolayer.core.statistics import Interval
from autolayer.reporting.records import FileRecord

METRICS = (
    "spearman", "share_of_ceiling", "spearman_without_depth", "regret_top1", "regret_top3", "coverage", "winkler",
)  # fmt: skip
"""The fields of a `JudgedRanking` that have a mean over files; metrics.py defines them."""


@dataclass(frozen=True, kw_only=True)
class JudgedRanking:
    """One way to rank the layers, judged on one measured file, or its mean over several."""

    name: str
    kind: Literal["prediction", "baseline", "probe"]
    picks: tuple[int, ...] = ()
    """Layers of the highest score; empty for `random`, and in a mean."""
    spearman: float | None = None
    """Rank correlation with the measured contributions; the other metrics are defined in metrics.py too."""
    share_of_ceiling: float | None = None
    """`spearman` divided by the noise ceiling."""
    spearman_without_depth: float | None = None
    regret_top1: float | None = None
    regret_top3: float | None = None
    coverage: float | None = None
    """Share of the layers whose measured value is inside the 80% interval."""
    winkler: float | None = None
    chance: float | None = None
    """Probability that a random ranking has this Spearman correlation or a higher one; None in a mean."""
    spearman_difference: Interval | None = None
    """The prediction's Spearman minus this row's. On one file with the interval that its error bars give, in a mean
    with the paired bootstrap interval over the files (3 or more)."""
    regret_difference: Interval | None = None
    """The prediction's top-1 regret minus this row's, below 0 where the prediction is better; in a mean only."""


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One compared layer. Measured intervals are of the file's level, predicted ones of 80%."""

    layer: int
    measured: float
    measured_low: float | None
    measured_high: float | None
    predicted: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The prediction and everything it has to beat, on one measured file."""

    predicted: str
    """The file or folder, as given."""
    measured: str
    predicted_for: str
    """Model, task and algorithm, or the file where it does not say."""
    measured_on: str
    num_layers: int
    num_seeds: int
    """With 1, the best layer was chosen on the numbers that it is scored on."""
    level: float
    """Coverage of the measured intervals."""
    ceiling: float | None
    """Spearman that a perfect prediction is expected to have, given the measurement's noise."""
    points: tuple[LayerPoint, ...]
    rows: tuple[JudgedRanking, ...]
    """The prediction first (missing where it is this very file), then baselines, then single probes."""
    notes: tuple[str, ...]
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class MeanJudgement:
    """The same rows over all files. A mean is None unless the value is known on every file."""

    num_comparisons: int
    rows: tuple[JudgedRanking, ...]
    notes: tuple[str, ...]
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison(FileRecord):
    """The whole of comparison.json. Returned by `autolayer.compare()`.

    Example:
        found = autolayer.compare("runs/demo-seed-0", "runs/measure-tiny")
        print(found.comparisons[0].verdict)
    """

    FILE = "comparison.json"

    schema_version: int = 1
    comparisons: tuple[Judgement, ...]
    mean: MeanJudgement | None
    """None with a single measured file."""
