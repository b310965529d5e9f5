"""contribution.json: the measured contribution of every layer, as a file to share, compare with and learn from.

C(l) = (S_l - S_base) / (S_full - S_base), the share of the full-parameter gain that training layer l alone recovers
(arXiv 2607.01232). `measure` writes the file, `compare` evaluates predictions with it, and the predictor learns from
it, for which it also holds the probes' scores of the same run. The JSON Schema of the file is made from these records.
"""

from dataclasses import field
from typing import Annotated, Any, Literal, Self

import annotated_types
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from pydantic.dataclasses import dataclass

from autolayer.core.config import Algorithm
from autolayer.core.settings import Count, NonNegative, OpenShare, Positive
from autolayer.reporting.records import RECORD, FileRecord, LayerIndex, OneOrMore, Proportion, Several

Seeds = Annotated[OneOrMore[int], Field(json_schema_extra={"uniqueItems": True})]


@dataclass(frozen=True, kw_only=True, config=RECORD)
class ArmGain:
    """One arm (a layer, or all parameters), trained once per seed."""

    # Described in the annotations, since the texts below fields are not inherited.
    learning_rate: Annotated[
        Positive,
        Field(
            description="Smallest rate of the grid that is as good on `select` as the best, within one standard error."
        ),
    ]
    gains: Annotated[
        OneOrMore[float],
        Field(description="Score over the base model's on the `eval` items, one per training seed, in their order."),
    ]
    value: Annotated[
        float, Field(description="Contribution of a layer; for the full-parameter run the gain itself, in reward.")
    ]
    low: Annotated[float, Field(description="Lower end of the interval of value.")]
    high: Annotated[float, Field(description="Upper end of the interval of value.")]


@dataclass(frozen=True, kw_only=True, config=RECORD)
class LayerGain(ArmGain):
    """One layer's arm, as a row of the file."""

    layer: LayerIndex
    """Index of the layer."""


def _to_rows(layers: dict[int, ArmGain]) -> list[LayerGain]:
    return [LayerGain(layer=layer, **vars(arm)) for layer, arm in layers.items()]


def _from_rows(rows: Any) -> Any:
    """Returns the rows of a file as the mapping that the record holds; anything else is left for the check."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "layer" in row for row in rows):
        return rows
    if len({str(row["layer"]) for row in rows}) < len(rows):
        raise ValueError("a layer is there twice")
    return {row["layer"]: {name: value for name, value in row.items() if name != "layer"} for row in rows}


@dataclass(frozen=True, kw_only=True, config=RECORD)
class Contribution(FileRecord):
    """The result of `measure`. Intervals include training-seed and evaluation noise.

    Example:
        found = autolayer.measure(model="tiny", task="math:arith")
        print(found.best_layers, found.values)
    """

    FILE = "contribution.json"

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
        dict[LayerIndex, ArmGain],
        annotated_types.MinLen(1),
        BeforeValidator(_from_rows),
        PlainSerializer(_to_rows, return_type=list[LayerGain]),
    ]
    """Measured layers in order, in the file as rows; value is the contribution, 1 = as much as training everything."""
    best_layers: Several[LayerIndex] = ()
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
    rates: OneOrMore[Positive]
    """Learning rates that every arm was tried at."""
    probes: dict[str, Several[float]] = field(default_factory=dict)
    """Probe name to its score of each measured layer, as the same configuration's probes gave it."""
    reliability: dict[str, Proportion] = field(default_factory=dict)
    """Probe name to the share of its variance over layers that is not noise."""
    signature: str = ""
    """Signature of the resolved configuration."""
    seed: int = 0
    """Seed of the run: of calibration, probes, and the first training."""
    notes: Several[str] = ()
    """Notes that qualify the numbers."""
    cost: dict[str, dict[Literal["generated_tokens", "layer_tokens", "seconds"], NonNegative]] = field(
        default_factory=dict
    )
    """Work of each stage; layer_tokens are those of all forward and backward passes, a generated token counted as one
    forward pass."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of autolayer and of the libraries it trained with."""
    schema_version: Literal[1] = 1
    """Version of this schema."""

    @property
    def values(self) -> dict[int, float]:
        """Contribution of each measured layer."""
        return {layer: arm.value for layer, arm in self.layers.items()}

    def by_seed(self) -> dict[int, tuple[float, ...]]:
        """Returns each layer's contribution on each training seed, over the mean full-parameter gain of all seeds."""
        full = sum(self.full.gains) / len(self.full.gains)
        return {layer: tuple(gain / full for gain in arm.gains) for layer, arm in self.layers.items()}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Checks the rules that the types of single fields cannot express."""
        rules = {
            f"it names layers beyond the {self.num_layers} of the model": max(*self.layers, *self.best_layers)
            < self.num_layers,
            "every arm needs one gain for each seed": {len(arm.gains) for arm in (self.full, *self.layers.values())}
            == {len(self.seeds)},
            "a seed is there twice": len(set(self.seeds)) == len(self.seeds),
            "every probe needs one score for each measured layer": all(
                len(scores) == len(self.layers) for scores in self.probes.values()
            ),
            "the full-parameter gain is not above 0, so no layer has a share of it": min(self.full.value, self.full.low)
            > 0,
        }
        if wrong := [sentence for sentence, holds in rules.items() if not holds]:
            raise ValueError("; ".join(wrong))
        return self
