"""contribution.json: the measured contribution of every layer, as a file to share, compare with and learn from.

C(l) = (S_l - S_base) / (S_full - S_base), the share of the full-parameter gain that training layer l alone recovers
(arXiv 2607.01232). `measure` writes it, `compare` judges predictions by it, and the predictor learns from it: that is
why the probes' scores of the same run stand beside the truth. Pure records, no torch.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolayer.core.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

CONTRIBUTION_SCHEMA_VERSION = 1
CONTRIBUTION_FILE = "contribution.json"


@dataclass(frozen=True, kw_only=True)
class ArmGain:
    """One arm (a layer, or all parameters), trained once per seed."""

    learning_rate: float
    """The smallest rate of the grid that is as good on `select` as the best, within one standard error."""
    gains: tuple[float, ...]
    """Score over the base model's on the `eval` items, one per training seed, in the order of `seeds`."""
    value: float
    """For a layer its contribution; for the full-parameter run the gain itself, in reward."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What `measure` found. Intervals hold training-seed and evaluation noise."""

    model: str
    base: str
    """Hash of the base model's weights: files of one base are never on both sides of a fit and its judgement."""
    architecture: str
    """The model's `model_type`."""
    num_parameters: int
    task: str
    algorithm: str
    num_layers: int
    steps: int
    prompts_per_step: int
    group_size: int
    seeds: tuple[int, ...]
    num_items: int
    """`eval` items that every arm was scored on, paired with the base."""
    base_score: float
    full: ArmGain
    layers: dict[int, ArmGain]
    """Measured layers only, in order."""
    best_layers: tuple[int, ...] = ()
    """The layer with the largest gain, then those that cannot be told apart from it at `level`."""
    level: float
    """Coverage of the intervals."""
    seed_sd: float | None
    """Standard deviation of one training run's gain between seeds, evaluation noise taken out, pooled over the arms;
    None with a single seed."""
    ceiling: float | None
    """Square root of the reliability of the layers' mean gains: what a perfect prediction would correlate with them.
    None with a single seed or a single layer."""
    estimator: str
    """How value, low and high were made, in one sentence."""
    rates: tuple[float, ...]
    """The learning rates every arm was tried at."""
    probes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Probe name -> score of each measured layer, as the same configuration's probes gave it."""
    reliability: dict[str, float] = field(default_factory=dict)
    """Probe name -> share of its variance over layers that is not noise."""
    signature: str = ""
    seed: int = 0
    notes: tuple[str, ...] = ()
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = CONTRIBUTION_SCHEMA_VERSION

    @property
    def values(self) -> dict[int, float]:
        """Layer -> contribution."""
        return {layer: arm.value for layer, arm in self.layers.items()}

    def by_seed(self) -> dict[int, tuple[float, ...]]:
        """Layer -> contribution on each training seed, over the mean full-parameter gain of all seeds."""
        full = sum(self.full.gains) / len(self.full.gains)
        return {layer: tuple(gain / full for gain in arm.gains) for layer, arm in self.layers.items()}

    def render(self, folder: Path) -> RenderableType:
        """A table for the terminal, and what it means."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in ("trained", "rate", *(f"gain, seed {seed}" for seed in self.seeds), "contribution"):
            table.add_column(column, justify="right", style="dim" if column == "rate" else None)

        def row(name: str, arm: ArmGain, value: str, style: str | None = None) -> None:
            table.add_row(name, f"{arm.learning_rate:g}", *(f"{gain:+.3f}" for gain in arm.gains), value, style=style)

        for layer, arm in self.layers.items():
            style = "bold" if layer in self.best_layers[:1] else None
            row(f"layer {layer}", arm, f"{arm.value:.2f} [{arm.low:.2f}, {arm.high:.2f}]", style)
        row("full", self.full, "1")
        full = self.full
        lines = [
            f"Contribution with {self.level:.0%} interval: the share of the full-parameter gain, {full.value:+.3f} "
            f"[{full.low:+.3f}, {full.high:+.3f}] from {self.base_score:.3f} on {self.num_items} items."
        ]
        if self.seed_sd is not None:
            lines.append(f"One run's gain differs between seeds by {self.seed_sd:.3f} (standard deviation).")
        if self.ceiling is not None:
            lines.append(f"A perfect prediction could correlate {self.ceiling:.2f} with these contributions.")
        first, *tied = self.best_layers or (None,)
        if tied:
            others = ", ".join(f"layer {layer}" for layer in tied)
            lines.append(f"Best: layer {first}; it cannot be told apart from {others}.")
        elif first is not None:
            lines.append(f"Best: layer {first}.")
        lines += [f"Note: {note}." for note in self.notes]
        title = Text(f"{self.model}, {self.task}, {self.algorithm}, {self.steps} steps")
        text = Text("\n".join([*lines, "", f"Every number: {folder / CONTRIBUTION_FILE}"]))
        return Group(title, Padding(table, (0, 0, 1, 2)), text)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["layers"] = [{"layer": layer, **asdict(arm)} for layer, arm in self.layers.items()]
        return json.loads(json.dumps(values, allow_nan=False))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contribution:
        """Raises KeyError, TypeError or ValueError where `values` is no contribution."""
        if values["schema_version"] != CONTRIBUTION_SCHEMA_VERSION:
            raise ValueError(
                f"schema_version {values['schema_version']}, this version reads {CONTRIBUTION_SCHEMA_VERSION}"
            )
        layers = {int(row["layer"]): _arm({k: v for k, v in row.items() if k != "layer"}) for row in values["layers"]}
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        probes = {name: tuple(map(float, scores)) for name, scores in values["probes"].items()}
        reliability = {name: float(share) for name, share in values.get("reliability", {}).items()}
        read = {"full": _arm(values["full"]), "layers": layers, "probes": probes, "reliability": reliability}
        found = cls(**{**plain, **read})
        lengths = {len(arm.gains) for arm in (found.full, *layers.values())}
        if lengths != {len(found.seeds)} or not layers:
            raise ValueError("every arm needs one gain for each seed")
        if any(len(scores) != len(layers) for scores in probes.values()):
            raise ValueError("every probe needs one score for each measured layer")
        if not all(math.isfinite(score) for scores in probes.values() for score in scores):
            raise ValueError("it has a probe score that is not finite")
        if not all(0 <= share <= 1 for share in reliability.values()):
            raise ValueError("a probe's reliability is not between 0 and 1")
        return found


def read(path: str | Path) -> Contribution:
    """Reads a contribution.json, or the one in a run folder of `measure`.

    Raises:
        DataError: It is missing or is no contribution.
    """
    path = Path(path)
    path = path / CONTRIBUTION_FILE if path.is_dir() else path
    try:
        return Contribution.from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: give a {CONTRIBUTION_FILE}, or a run folder of `autolayer measure`."
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no {CONTRIBUTION_FILE} ({type(error).__name__}: {error}): measure again.") from None


def validate(value: dict[str, Any]) -> None:
    """Checks a record before it is written.

    Raises:
        ValueError: It breaks the schema. That is a bug of ours, so it is no AutolayerError.
    """
    if wrong := problems(value):
        raise ValueError(f"{CONTRIBUTION_FILE} would break its schema: {'; '.join(wrong)}")


def problems(value: Any) -> list[str]:
    """Every place where a value is no contribution, as '/layers/0/value: why'; empty for a good one."""
    import jsonschema  # 60 ms: only where a record is written or resumed

    broken = sorted(jsonschema.Draft202012Validator(schema()).iter_errors(value), key=lambda e: [*map(str, e.path)])
    if broken:
        return [f"/{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in broken]
    try:
        Contribution.from_dict(json.loads(json.dumps(value, allow_nan=False)))
    except ValueError as error:  # JSON Schema lets NaN pass as a number, and cannot compare lengths
        return [f"/: {error}"]
    return []


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of contribution.json (draft 2020-12)."""
    return json.loads(Path(__file__).with_name("contribution.schema.json").read_text(encoding="utf-8"))


def _arm(values: dict[str, Any]) -> ArmGain:
    arm = ArmGain(**{**values, "gains": tuple(map(float, values["gains"]))})
    if not all(map(math.isfinite, (*arm.gains, arm.value, arm.low, arm.high))):
        raise ValueError("a number is not finite")
    return arm
