"""The records behind comparison.json. None stands for a value that does not exist. No torch."""

from dataclasses import dataclass
from typing import Literal

from autolayer.core.statistics import Interval
from autolayer.reporting.records import FileRecord

NUM_ENDS = 10
"""Layers that count as the best and as the worst ones, or half of the layers if these are fewer."""


@dataclass(frozen=True, kw_only=True)
class JudgedRanking:
    """One way to rank the layers, judged on one measured file."""

    name: str
    kind: Literal["prediction", "baseline", "probe"]
    picks: tuple[int, ...] = ()
    """Layers of the highest score; empty for `random`."""
    spearman: float | None = None
    """Rank correlation with the measured contributions; the other metrics are defined in metrics.py too."""
    share_of_ceiling: float | None = None
    """`spearman` divided by the noise ceiling."""
    pearson: float | None = None
    auc_best: float | None = None
    """Probability that one of the best layers (`NUM_ENDS`) scores higher than another layer."""
    auc_worst: float | None = None
    """Probability that one of the worst layers scores lower than another layer."""
    regret: float | None = None
    """Contribution lost by training the layer of the highest score. Like the correlations, it is None where only the
    best and the worst layers are known."""
    coverage: float | None = None
    """Share of the layers whose measured value is inside the 80% interval."""
    winkler: float | None = None
    chance: float | None = None
    """Probability that a random ranking has this Spearman correlation or a higher one."""
    spearman_difference: Interval | None = None
    """The prediction's Spearman minus this row's, with the interval that the error bars of the file give."""


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One compared layer. Measured intervals are of the file's level, predicted ones of 80%."""

    layer: int
    measured: float | None
    """None where it is not known."""
    measured_low: float | None
    measured_high: float | None
    predicted: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The prediction and everything it has to beat, on one measured file."""

    predicted: str
    measured: str
    predicted_for: str
    """Model, task and algorithm, or the file if it does not say."""
    measured_on: str
    num_layers: int
    num_seeds: int
    """With 1, the best layer was chosen on the numbers that it is scored on."""
    level: float
    """Coverage of the measured intervals."""
    ceiling: float | None
    """Spearman that a perfect prediction is expected to have, given the measurement's noise."""
    points: tuple[LayerPoint, ...]
    best: tuple[int, ...] = ()
    """The best layers, best first, of a source that names only the best and the worst."""
    worst: tuple[int, ...] = ()
    """The worst layers, worst first, of such a source."""
    rows: tuple[JudgedRanking, ...]
    """The prediction first (missing if it is this very file), then baselines, then single probes."""
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
