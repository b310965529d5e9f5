"""result.json: the records of what a run found, from which its JSON Schema is made.

None stands for what is not known (yet). NaN is refused.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import field
from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from autolayer.core.config import Algorithm
from autolayer.core.run_folder import RESULT
from autolayer.core.settings import Count, NonNegative, OpenShare, Positive
from autolayer.reporting.records import (
    RECORD,
    FileRecord,
    LayerIndex,
    LayerIndices,
    NonNegativeInt,
    Proportion,
    Several,
)

PACKAGES = ("autolayer", "torch", "transformers", "trl", "peft", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that a result names."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@dataclass(frozen=True, kw_only=True, config=RECORD)
class Rung:
    """One short RL run of a layer."""

    steps: NonNegativeInt
    """Optimizer steps after which it was measured."""
    learning_rate: Positive
    """Learning rate of that run."""
    seed: int
    """Seed of that run; runs of one seed are paired."""
    gain: float
    """Reward after the run minus the base model's, on the same items."""
    low: float
    """Lower end of the gain's 95% interval."""
    high: float
    """Upper end of the gain's 95% interval."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class RankingRow:
    """One candidate layer: its predicted and its measured contribution, and how probably it is the best."""

    layer: LayerIndex
    """Index of the layer."""
    predicted: float | None = None
    """Contribution that the probes predict, or with the status prior depth alone; null where neither was asked."""
    predicted_low: float | None = None
    """Lower end of the prediction's 80% interval."""
    predicted_high: float | None = None
    """Upper end of the prediction's 80% interval."""
    measured: float | None = None
    """Contribution measured in the layer's longest short run, relative to contribution_reference; null where it was
    never run. Comparable only between layers with the same measured_steps."""
    measured_low: float | None = None
    """Lower end of the measured contribution's 95% interval."""
    measured_high: float | None = None
    """Upper end of the measured contribution's 95% interval."""
    measured_steps: NonNegativeInt | None = None
    """Optimizer steps after which it was measured."""
    expected: float | None = None
    """Contribution to expect of a full run, from prediction and short runs together; null before the search."""
    expected_low: float | None = None
    """Lower end of its 80% interval."""
    expected_high: float | None = None
    """Upper end of its 80% interval."""
    probability_best: Proportion | None = None
    """Probability that this layer is the best candidate; null before the search, and where it was not raced."""
    relative_cost: float | None = None
    """Layer-tokens of a training step of this layer, rollouts included, divided by those of all parameters."""
    rungs: Several[Rung] = ()
    """Every short run of the layer, in the order they were done; empty where it was never run."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class SetRow:
    """A set of layers that race together (--top-k)."""

    layers: LayerIndices
    """Indices of the layers."""
    predicted: float | None = None
    """The same as in the ranking."""
    measured: float | None = None
    """The same as in the ranking."""
    measured_low: float | None = None
    """The same as in the ranking."""
    measured_high: float | None = None
    """The same as in the ranking."""
    measured_steps: NonNegativeInt | None = None
    """The same as in the ranking."""
    probability_best: Proportion | None = None
    """The same as in the ranking."""
    rungs: Several[Rung] = ()
    """The same as in the ranking."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class Gain:
    """Gain of the trained model over the base model, paired by item."""

    value: float
    """trained_score minus base_score."""
    low: float
    """Lower end of the paired interval."""
    high: float
    """Upper end of the paired interval."""
    level: OpenShare
    """Level of the interval, such as 0.95."""
    num_items: Count
    """Items compared."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class SuiteScore:
    """Base and trained model on one evaluation set."""

    num_items: Count
    """Items of the set that were read."""
    samples: Count
    """Completions of each item, whose mean is the item's reward."""
    base_score: float
    """Mean reward of the base model: its correctness, where the reward is 1 for correct and 0 for all else."""
    trained_score: float
    """Mean reward of the trained model."""
    base_truncated: Proportion
    """Share of the base model's completions that hit the token limit."""
    trained_truncated: Proportion
    """Share of the trained model's completions that hit the token limit."""
    base_well_formed: Proportion | None = None
    """Share of the base model's completions that look like an answer, right or wrong; null where the task cannot
    say."""
    trained_well_formed: Proportion | None = None
    """Share of the trained model's completions that look like an answer, right or wrong; null where the task cannot
    say."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class Baseline:
    """A layer that is chosen without any information about the model."""

    layer: LayerIndex
    """Index of the layer."""
    predicted: float | None = None
    """Predicted contribution of the layer."""
    measured: float | None = None
    """Measured contribution of the layer; null if it was never run."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class StageCost:
    """Cost of one stage."""

    generated_tokens: NonNegative
    """Tokens generated."""
    layer_tokens: NonNegative
    """All of its work in layer-tokens: one token through one block forward is 1, its activation gradient 1, its
    weight gradient 1; generated tokens are included at the exchange rate measured on this machine."""
    seconds: NonNegative
    """Wall-clock seconds."""
    seconds_share: NonNegative | None = None
    """The same as a share of those of one full run of the final training; null before it has run."""


@dataclass(frozen=True, kw_only=True, config=RECORD)
class PickResult(FileRecord):
    """The whole of result.json, as `autolayer.pick()` and `autolayer.train_layer()` return it.

    Example:
        result = autolayer.pick(config)
        print(result.best_layers, result.gain.value)
    """

    FILE = RESULT

    schema_version: Literal[1] = 1
    """Version of this schema."""
    status: Literal["ok", "incomplete", "prior"]
    """ok: trained; incomplete: stopped by --until or --hours; prior: answered from depth alone by --budget 0, so that
    nothing was measured or trained."""
    model: str
    """Base model, as given."""
    task: str
    """Task, as given."""
    algorithm: Algorithm
    """RL algorithm."""
    num_layers: Count
    """Transformer blocks of the base model."""
    candidates: LayerIndices
    """The layers that could be chosen."""
    best_layers: LayerIndices | None = None
    """The chosen layers; after --until the best so far; null if no layer was examined."""
    tied_layers: LayerIndices | None = None
    """Layers that cannot be distinguished from the best one, the best included; empty if the winner is clear. With the
    status prior, the layers that depth alone predicts within --regret of the best one."""
    trained_layers: LayerIndices | None = None
    """Layers that the final run trained; null before training."""
    verdict: Literal["clear", "tied", "budget_spent"] | None = None
    """Outcome of the search; null if it did not run to its end."""
    stop_reason: str | None = None
    """Why the search ended, as a sentence."""
    expected_regret: NonNegative | None = None
    """Expected loss of contribution from taking best_layers instead of the true best layers; with the status prior, the
    mean that the prior's first choice lost on models it was not fitted to."""
    learning_rate: Positive | None = None
    """Learning rate of the final run (before it: of the best layer so far)."""
    base_score: float | None = None
    """Mean reward of the base model on the eval split."""
    trained_score: float | None = None
    """Mean reward of the trained model on the eval split, in the dtype it is saved in."""
    gain: Gain | None = None
    """Gain of training on the eval split, paired by item with the base model; null before training."""
    suites: Mapping[str, SuiteScore] | None = None
    """Base and trained model on every set of the eval split (one, named as the task, where it has no sets); null
    before training, left out by older versions. base_score and trained_score are the unweighted means over the
    sets."""
    reward_metrics: Mapping[str, Mapping[str, float]] | None = None
    """Values that the reward logged about the evaluation (TRL's log_metric), for base and trained: shares of answers
    that could not be judged, of programs that ran out of time or memory. Null before training and where there is
    nothing, left out by older versions."""
    contribution_reference: Literal["best"] | None = None
    """Meaning of a measured contribution of 1: the gain of the best candidate measured at that rung."""
    ranking: Several[RankingRow] | None = None
    """Every candidate once, most probable first; null if no layer was examined."""
    sets: Several[SetRow] | None = None
    """Sets of layers that raced with --top-k, most probable first; else null."""
    baselines: Mapping[str, Baseline] | None = None
    """random, first, middle, last and position, for comparison; null if no layer was examined."""
    probes: Mapping[str, Several[float | None]] | None = None
    """Raw scores of every probe; higher means more contribution."""
    cost: Mapping[str, StageCost] = field(default_factory=dict)
    """Cost of every stage that ran."""
    cost_share_of_full_run: NonNegative | None = None
    """Cost of finding the layer (calibrate, probe and search) over the cost of one full run of the final training."""
    seed: int
    """Seed of the run."""
    signature: str
    """Two runs with the same signature had the same configuration."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of autolayer and of its main libraries."""
    notes: Several[str] = ()
    """Warnings, and what was left out, in plain words."""

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the verdict, contribution by layer, and the ranking."""
        from autolayer.reporting.html import html_fragment  # which imports this module

        return html_fragment(self)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Checks the rules that the types of single fields cannot express."""
        ranking = list(self.ranking or ())
        named = [row.layer for row in ranking]
        for layers in (self.candidates, self.best_layers, self.tied_layers, self.trained_layers, named):
            if wrong := [layer for layer in layers or () if layer >= self.num_layers]:
                raise ValueError(f"it names the layers {wrong} of a model with {self.num_layers}")
        if self.ranking is not None and sorted(named) != sorted(self.candidates):
            raise ValueError(f"the ranking holds the layers {named}, the candidates are {list(self.candidates)}")
        known = [row.probability_best for row in ranking if row.probability_best is not None]
        if known != sorted(known, reverse=True):
            raise ValueError("the most probable layer must come first in the ranking")
        return self
