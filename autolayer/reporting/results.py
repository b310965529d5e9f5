"""What a run found: the records behind result.json, and the schema that holds them.

The fields are documented once, in `result.schema.json` beside this file; a test keeps the two alike. None stands
for what is not known (yet); NaN is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autolayer.core.errors import RunFolderError

RESULT_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One short RL run of a layer."""

    steps: int
    learning_rate: float
    seed: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RankingRow:
    """One candidate: what was predicted, what was measured, how probably it is the best."""

    layer: int
    predicted: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    measured: float | None = None
    measured_low: float | None = None
    measured_high: float | None = None
    measured_steps: int | None = None
    probability_best: float | None = None
    rungs: Sequence[Rung] = ()


@dataclass(frozen=True, kw_only=True)
class SetRow:
    """Layers that race together (--top-k)."""

    layers: Sequence[int]
    predicted: float | None = None
    measured: float | None = None
    measured_low: float | None = None
    measured_high: float | None = None
    measured_steps: int | None = None
    probability_best: float | None = None
    rungs: Sequence[Rung] = ()


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Trained against base model, paired by item."""

    value: float
    low: float
    high: float
    level: float
    num_items: int


@dataclass(frozen=True, kw_only=True)
class SuiteScore:
    """Base and trained model on one evaluation set."""

    num_items: int
    samples: int
    base_score: float
    trained_score: float
    base_truncated: float
    trained_truncated: float
    base_well_formed: float | None = None
    trained_well_formed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A layer taken without looking at the model."""

    layer: int
    predicted: float | None = None
    measured: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Work of one stage."""

    generated_tokens: float
    layer_tokens: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PickResult:
    """The whole of result.json. Returned by `autolayer.pick()` and `autolayer.train_layer()`.

    Example:
        result = autolayer.pick(config)
        print(result.best_layers, result.gain.value)
    """

    schema_version: int = RESULT_SCHEMA_VERSION
    status: Literal["ok", "incomplete", "no_signal"]
    model: str
    task: str
    algorithm: str
    num_layers: int
    candidates: Sequence[int]
    best_layers: Sequence[int] | None = None
    tied_layers: Sequence[int] | None = None
    trained_layers: Sequence[int] | None = None
    verdict: Literal["clear", "tied", "budget_spent"] | None = None
    stop_reason: str | None = None
    expected_regret: float | None = None
    learning_rate: float | None = None
    base_score: float | None = None
    trained_score: float | None = None
    gain: Gain | None = None
    suites: Mapping[str, SuiteScore] | None = None
    reward_metrics: Mapping[str, Mapping[str, float]] | None = None
    contribution_reference: Literal["full", "best"] | None = None
    ranking: Sequence[RankingRow] | None = None
    sets: Sequence[SetRow] | None = None
    baselines: Mapping[str, Baseline] | None = None
    probes: Mapping[str, Sequence[float | None]] | None = None
    cost: Mapping[str, StageCost] = field(default_factory=dict)
    cost_share_of_full_run: float | None = None
    seed: int
    signature: str
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, ready for `json.dumps`."""
        return _plain(dataclasses.asdict(self))

    def to_json(self) -> str:
        """The text of result.json, without its last newline. `--json` prints exactly this."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def from_dict(value: dict[str, Any]) -> PickResult:
    """Rebuilds a result that was read from a file.

    Raises:
        RunFolderError: It is no result: every place that does not fit is named.
    """
    wrong = problems(value)
    if wrong:
        raise RunFolderError(
            f"this is no result of autolayer ({'; '.join(wrong[:5])}): delete result.json and repeat the command "
            "that made it."
        )
    ranking, gain, baselines = value["ranking"], value["gain"], value["baselines"]
    sets, suites = value.get("sets"), value.get("suites")  # an older result has none
    return PickResult(
        **{
            **{name: tuple(item) if isinstance(item, list) else item for name, item in value.items()},
            "gain": gain and Gain(**gain),
            "ranking": None if ranking is None else tuple(_row(RankingRow, row) for row in ranking),
            "sets": None if sets is None else tuple(_row(SetRow, row) for row in sets),
            "suites": suites and {name: SuiteScore(**suite) for name, suite in suites.items()},
            "baselines": None if baselines is None else {name: Baseline(**b) for name, b in baselines.items()},
            "cost": {stage: StageCost(**cost) for stage, cost in value["cost"].items()},
        }
    )


def validate(value: dict[str, Any]) -> None:
    """Checks a result before it is written.

    Raises:
        ValueError: It breaks the schema. That is a bug of ours, so it is no AutolayerError.
    """
    wrong = problems(value)
    if wrong:
        raise ValueError(f"result.json would break its schema: {'; '.join(wrong)}")


def problems(value: Any) -> list[str]:
    """Every place where a value is no result, as '/ranking/0/layer: why'; empty for a good one."""
    import jsonschema  # 60 ms: only where a result is read or written

    broken = sorted(jsonschema.Draft202012Validator(schema()).iter_errors(value), key=lambda e: [*map(str, e.path)])
    if broken:
        return [f"/{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in broken]
    return _not_finite(value) + _ranking_problems(value)


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of result.json (draft 2020-12)."""
    return json.loads(Path(__file__).with_name("result.schema.json").read_text(encoding="utf-8"))


def _row(kind: Callable[..., Any], row: dict[str, Any]) -> Any:
    lists = {name: tuple(item) if isinstance(item, list) else item for name, item in row.items()}
    return kind(**{**lists, "rungs": tuple(Rung(**rung) for rung in row["rungs"])})


def _plain(value: Any) -> Any:
    """Tuples become lists and numpy's numbers become Python's: json.dumps knows neither."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{value!r} has no place in result.json")


def _not_finite(value: Any, path: str = "") -> list[str]:
    """JSON Schema lets NaN and infinity pass as numbers; they are no results."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in _not_finite(item, f"{path}/{name}")]
    if isinstance(value, list):
        return [found for place, item in enumerate(value) for found in _not_finite(item, f"{path}/{place}")]
    return [f"{path}: {value} is not finite"] if isinstance(value, float) and not math.isfinite(value) else []


def _ranking_problems(value: dict[str, Any]) -> list[str]:
    """What a schema cannot say about the ranking."""
    if value["ranking"] is None:
        return []
    layers = [row["layer"] for row in value["ranking"]]
    wrong = []
    if sorted(layers) != sorted(value["candidates"]):
        wrong.append(f"/ranking: holds the layers {layers}, the candidates are {value['candidates']}")
    known = [row["probability_best"] for row in value["ranking"] if row["probability_best"] is not None]
    if known != sorted(known, reverse=True):
        wrong.append("/ranking: the most probable layer must come first")
    return wrong
