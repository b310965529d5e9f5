"""What the race is told and what it answers. Pure records; the decisions are in `race`, the model in `posterior`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import AutolayerError, ConfigError
from autolayer.core.layer_set import Layers
from autolayer.reporting.results import Rung

RaceVerdict = Literal["clear", "tied", "budget_spent"]


TIME_IS_UP = "time is up"
"""In the stop reason of a race that its deadline has cut: the same call may go on with it."""


class SearchError(AutolayerError, RuntimeError):
    """Every short run of the search failed, so there is nothing to decide on."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A set of layers that may win, and what the probes say about it."""

    layers: tuple[int, ...]
    predicted: float
    """Predicted contribution: the share of the full-parameter gain that training these layers recovers."""
    predicted_sd: float
    """Standard deviation of the prediction's error against the model's mean, in contribution."""
    learning_rate: float
    """The starting rate: it moves the policy equally far in every candidate, as far as training goes."""


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """Everything besides the candidates that decides how a race goes."""

    signature: str = ""
    """Names everything else that decides a run: two races share a storage only if they share this."""
    seed: int
    num_layers: int
    """Blocks of the model: distances between layers and `middle` are relative to it."""
    total_steps: int
    """Optimizer steps of the full run; no short run is longer."""
    budget: Cost
    """What the race may cost; held in generated tokens and in layer-tokens."""
    step_cost: Callable[[Layers], Cost]
    """Cost of one optimizer step, rollouts included."""
    eval_cost: Cost
    """Cost of scoring one arm on all `select` items."""
    regret: float = 0.05
    """Contribution one is ready to lose: below it the race stops as tied."""
    confidence: float = 0.95
    """The leader is clear when it is best with at least this probability."""
    rate_span: float = 4.0
    """Rates are searched between the starting rate divided and multiplied by this."""
    fixed_rate: bool = False
    """True if the user gave the learning rate: then no other is tried."""

    def __post_init__(self) -> None:
        problems = []
        if self.total_steps < 1:
            problems.append(f"total_steps {self.total_steps} leaves nothing to train: give at least 1")
        if not 0 < self.confidence < 1:
            problems.append(f"confidence {self.confidence} is no probability: give a number between 0 and 1")
        if self.regret < 0:
            problems.append(f"regret {self.regret} cannot be met: give 0 or a number above")
        if self.rate_span < 1:
            problems.append(f"rate_span {self.rate_span} leaves no range of rates: give a number of at least 1")
        if problems:
            raise ConfigError("; ".join(problems) + ".")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An arm's place in the race: layers, learning rate and seed, without a step."""

    layers: tuple[int, ...]
    rate_index: int = 0
    """Which of the layers' learning rates (`learning_rates.RATE_STEPS`); 0 is the starting rate."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One short run: a slot taken from where it stands to a rung. One Optuna trial."""

    slot: Slot
    from_step: int
    to_step: int

    @property
    def key(self) -> str:
        """Names the run in every process; two runs of one key are the same work."""
        layers = ",".join(map(str, self.slot.layers))
        return f"layer-{layers}_rate-{self.slot.rate_index}_seed-{self.slot.seed}_step-{self.to_step}"


@dataclass(frozen=True, kw_only=True)
class RacedCandidate:
    """One candidate: what was predicted, what was measured, and what follows from both."""

    layers: tuple[int, ...]
    predicted: float
    measured: float | None
    """Gain in reward of the layers' best arm at its last step; None if no run of theirs finished."""
    measured_low: float | None
    measured_high: float | None
    measured_steps: int | None
    expected: float
    """Posterior mean of the contribution after a full run."""
    probability_best: float
    failed: str | None
    """Why a run of these layers failed, if one did."""
    rungs: tuple[Rung, ...]
    """Finished runs; a gain is the mean reward over the base model's on the `select` items, with a 95% interval."""


@dataclass(frozen=True, kw_only=True)
class RaceOutcome:
    """The end of a race."""

    best: tuple[int, ...]
    tied: tuple[tuple[int, ...], ...]
    """Layers that could not be told apart from the best one, itself left out; empty if the verdict is clear."""
    verdict: RaceVerdict
    stop_reason: str
    expected_regret: float
    """Contribution that choosing `best` is expected to lose against the truly best candidate."""
    winner: Arm
    """The arm of `best` with the best learning rate, as far as it was trained; at step 0 if it never was."""
    ranking: tuple[RacedCandidate, ...]
    """Every candidate once, most probable first."""
    spent: Cost


def name_layers(layers: tuple[int, ...]) -> str:
    """'layer 16' or 'layers 10,11,12', for sentences."""
    return f"layer{'s' if len(layers) > 1 else ''} {','.join(map(str, layers))}"
