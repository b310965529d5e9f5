"""contribution.json: the measured contribution of every layer, as a file to share, compare with and learn from.

C(l) = (S_l - S_base) / (S_full - S_base), the share of the full-parameter gain that training layer l alone recovers
(arXiv 2607.01232). `measure` writes the file, `compare` evaluates predictions with it, and the predictor learns from
it, for which it also holds the probes' scores of the same run. The JSON Schema of the file is made from these records.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import Field, PlainSerializer

from autolayer.core.config import Algorithm
from autolayer.core.errors import DataError
from autolayer.core.settings import Count, NonNegative, OpenShare, Positive
from autolayer.reporting.records import (
    RECORD,
    LayerIndex,
    Proportion,
    make_schema,
    parse_record,
    problems_of,
)

CONTRIBUTION_SCHEMA_VERSION = 1
CONTRIBUTION_FILE = "contribution.json"
Seeds = Annotated[tuple[int, ...], annotated_types.MinLen(1), Field(json_schema_extra={"uniqueItems": True})]
Rates = Annotated[tuple[Positive, ...], annotated_types.MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class ArmGain:
    """One arm (a layer, or all parameters), trained once per seed."""

    __pydantic_config__ = RECORD

    # Described in the annotations, since the texts below fields are not inherited.
    learning_rate: Annotated[
        Positive,
        Field(
            description="Smallest rate of the grid that is as good on `select` as the best, within one standard error."
        ),
    ]
    gains: Annotated[
        tuple[float, ...],
        annotated_types.MinLen(1),
        Field(description="Score over the base model's on the `eval` items, one per training seed, in their order."),
    ]
    value: Annotated[
        float, Field(description="Contribution of a layer; for the full-parameter run the gain itself, in reward.")
    ]
    low: Annotated[float, Field(description="Lower end of the interval of value.")]
    high: Annotated[float, Field(description="Upper end of the interval of value.")]


@dataclass(frozen=True, kw_only=True)
class LayerGain(ArmGain):
    """One layer's arm, as a row of the file."""

    __pydantic_config__ = RECORD

    layer: LayerIndex
    """Index of the layer."""


def _rows(layers: dict[int, ArmGain]) -> list[LayerGain]:
    return [LayerGain(layer=layer, **asdict(arm)) for layer, arm in layers.items()]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """The result of `measure`. Intervals include training-seed and evaluation noise.

    Example:
        found = autolayer.measure(model="tiny", task="math:arith")
        print(found.best_layers, found.values)
    """

    __pydantic_config__ = RECORD

    model: str
    """Base model, as given."""
    base: str
    """Hash of the base model's weights, so that files of one base never serve both to fit and to test a predictor."""
    architecture: str
    """The model's `model_type`."""
    num_parameters: Count
    """Parameters of the base model."""
    task: str
    """Task, as given."""
    algorithm: Algorithm
    """RL algorithm."""
    num_layers: Count
    """Transformer blocks of the base model."""
    steps: Count
    """Optimizer steps of every full run."""
    prompts_per_step: Count
    """Prompts per optimizer step."""
    group_size: Annotated[int, annotated_types.Ge(2)]
    """Completions per prompt."""
    seeds: Seeds
    """Training seeds; every arm was trained once with each."""
    num_items: Count
    """Items of the `eval` split that every arm was scored on, paired with the base model."""
    base_score: float
    """Mean reward of the base model on these items."""
    full: ArmGain
    """The full-parameter reference; its value is the gain itself, in reward, and above 0."""
    layers: Annotated[
        dict[LayerIndex, ArmGain], annotated_types.MinLen(1), PlainSerializer(_rows, return_type=list[LayerGain])
    ]
    """Measured layers in order, in the file as rows; value is the contribution, 1 = as much as training everything."""
    best_layers: tuple[LayerIndex, ...] = ()
    """The layer with the largest gain, then those that cannot be told apart from it at `level`."""
    level: OpenShare
    """Coverage of the intervals."""
    seed_sd: NonNegative | None
    """Standard deviation of one training run's gain between seeds, evaluation noise taken out, pooled over the arms;
    null with one seed."""
    ceiling: Proportion | None
    """Square root of the reliability of the layers' mean gains: the correlation of a perfect prediction with them.
    Null with one seed or one layer."""
    estimator: str
    """Description of how value, low and high were computed, in one sentence."""
    rates: Rates
    """Learning rates that every arm was tried at."""
    probes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Probe name to its score of each measured layer, as the same configuration's probes gave it."""
    reliability: dict[str, Proportion] = field(default_factory=dict)
    """Probe name to the share of its variance over layers that is not noise."""
    signature: str = ""
    """Signature of the resolved configuration."""
    seed: int = 0
    """Seed of the run: of calibration, probes, and the first training."""
    notes: tuple[str, ...] = ()
    """Notes that qualify the numbers."""
    cost: dict[str, dict[Literal["generated_tokens", "layer_tokens", "seconds"], NonNegative]] = field(
        default_factory=dict
    )
    """Work of each stage; layer_tokens are those of all forward and backward passes, a generated token counted as one
    forward pass."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of autolayer and of the libraries it trained with."""
    schema_version: Literal[1] = CONTRIBUTION_SCHEMA_VERSION
    """Version of this schema."""

    @property
    def values(self) -> dict[int, float]:
        """Contribution of each measured layer."""
        return {layer: arm.value for layer, arm in self.layers.items()}

    def by_seed(self) -> dict[int, tuple[float, ...]]:
        """Returns each layer's contribution on each training seed, over the mean full-parameter gain of all seeds."""
        full = sum(self.full.gains) / len(self.full.gains)
        return {layer: tuple(gain / full for gain in arm.gains) for layer, arm in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain values of contribution.json."""
        values = asdict(self)
        values["layers"] = [{"layer": layer, **asdict(arm)} for layer, arm in self.layers.items()]
        return json.loads(json.dumps(values, allow_nan=False))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contribution:
        """Builds a contribution from the values of a file.

        Raises:
            ValueError: They are no contribution.
        """
        found = parse_record(cls, _with_mapping(values))
        if wrong := _contradictions(found):
            raise ValueError("; ".join(wrong))
        return found


def read(path: str | Path) -> Contribution:
    """Reads a contribution.json, or the one in a run folder of `measure`.

    Raises:
        DataError: It is missing or is no contribution.
    """
    path = Path(path)
    path = path / CONTRIBUTION_FILE if path.is_dir() else path
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: give a {CONTRIBUTION_FILE}, or a run folder of `autolayer measure`."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is no {CONTRIBUTION_FILE} ({error}): measure again.") from None
    if wrong := problems(values):
        raise DataError(f"{path} is no {CONTRIBUTION_FILE} ({'; '.join(wrong[:3])}): measure again.")
    return Contribution.from_dict(values)


def validate(value: dict[str, Any]) -> None:
    """Checks a record before it is written.

    Raises:
        ValueError: It does not fit. That is a bug of ours, so it is no AutolayerError.
    """
    if wrong := problems(value):
        raise ValueError(f"{CONTRIBUTION_FILE} would break its schema: {'; '.join(wrong)}")


def problems(value: Any) -> list[str]:
    """Returns every place where a value is no contribution, as '/layers/0/value: why'; empty for a good one."""
    if wrong := problems_of(Contribution, _with_mapping(value)):
        return wrong
    return [f"/: {each}" for each in _contradictions(parse_record(Contribution, _with_mapping(value)))]


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of contribution.json, published as contribution.schema.json."""
    return make_schema(
        Contribution,
        "autolayer contribution",
        "contribution.json: the measured contribution of every layer, (S_l - S_base) / (S_full - S_base), written by "
        "`autolayer measure`. Numbers are never NaN; what is not known is null.",
    )


def _with_mapping(values: Any) -> Any:
    """Returns the values of a file with its rows of layers as a mapping, as the record holds them."""
    rows = values.get("layers") if isinstance(values, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "layer" in row for row in rows):
        return values
    layers = {row["layer"]: {name: value for name, value in row.items() if name != "layer"} for row in rows}
    return {**values, "layers": layers}


def _contradictions(found: Contribution) -> list[str]:
    """Checks the rules that the types of single fields cannot express."""
    wrong = []
    if {len(arm.gains) for arm in (found.full, *found.layers.values())} != {len(found.seeds)}:
        wrong.append("every arm needs one gain for each seed")
    if len(set(found.seeds)) != len(found.seeds):
        wrong.append("a seed is there twice")
    if any(len(scores) != len(found.layers) for scores in found.probes.values()):
        wrong.append("every probe needs one score for each measured layer")
    if found.full.value <= 0 or found.full.low <= 0:
        wrong.append("the full-parameter gain is not above 0, so no layer has a share of it")
    return wrong
