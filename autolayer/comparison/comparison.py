"""The records behind comparison.json. None stands for a value that does not exist. No torch."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autolayer.core.statistics import Interval

COMPARISON_SCHEMA_VERSION = 1
COMPARISON_FILE = "comparison.json"
FIGURE_FILES = ("comparison.png", "comparison.svg")
METRICS = (
    "spearman", "share_of_ceiling", "kendall", "spearman_without_depth", "kendall_without_depth", "regret_top1",
    "regret_top3", "coverage", "winkler",
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
    kendall: float | None = None
    spearman_without_depth: float | None = None
    kendall_without_depth: float | None = None
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
    measured_low: float | None = None
    measured_high: float | None = None
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
    only_predicted: tuple[int, ...]
    """Layers left out because they were not measured."""
    only_measured: tuple[int, ...]
    """Layers left out because nothing is predicted for them."""
    num_seeds: int
    in_sample: bool
    """A single seed: the best layer was chosen on the numbers that it is scored on."""
    level: float
    """Coverage of the measured intervals."""
    ceiling: float | None
    """Spearman that a perfect prediction is expected to have, given the measurement's noise."""
    is_contribution: bool
    """True if the prediction is in units of contribution, False for a scale of its own."""
    points: tuple[LayerPoint, ...]
    rows: tuple[JudgedRanking, ...]
    """The prediction first (missing where it is this very file), then baselines, then single probes."""
    notes: tuple[str, ...] = ()
    verdict: str = ""

    @property
    def prediction(self) -> JudgedRanking | None:
        """The row of the prediction; None where the prediction is the measured file itself."""
        return next((row for row in self.rows if row.kind == "prediction"), None)


@dataclass(frozen=True, kw_only=True)
class MeanJudgement:
    """The same rows over all files. A mean is None unless the value is known on every file."""

    num_comparisons: int
    rows: tuple[JudgedRanking, ...]
    notes: tuple[str, ...] = ()
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole of comparison.json. Returned by `autolayer.compare()`.

    Example:
        found = autolayer.compare("runs/demo-seed-0", "runs/measure-tiny")
        print(found.comparisons[0].verdict)
    """

    comparisons: tuple[Judgement, ...]
    mean: MeanJudgement | None
    """None with a single measured file."""
    schema_version: int = COMPARISON_SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, dicts and numbers."""
        values = asdict(self)
        ordered = {name: values[name] for name in ("schema_version", "comparisons", "mean")}
        return json.loads(json.dumps(ordered, allow_nan=False))

    def to_json(self) -> str:
        """Returns the text of comparison.json without its last newline; `--json` prints exactly this."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)
