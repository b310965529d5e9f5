"""Defines the inputs and outputs of the race as plain records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.layer_set import Layers, layers_text
from autolayer.reporting.results import Rung

RaceVerdict = Literal["clear", "tied", "budget_spent"]
RATE_STEPS = (0.0, 0.5, -0.5)
"""Exponents of `rate_span`, in the order in which rates are tried: starting rate, one step up, one step down."""
TIME_IS_UP = "time is up"
"""Stop reason of a race that its deadline ended. The same call with more time resumes it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A set of layers that may win, with its prediction and starting learning rate."""

    layers: tuple[int, ...]
    predicted: float
    """Predicted contribution: the share of the full-parameter gain that training these layers recovers."""
    predicted_sd: float
    """Standard deviation of the prediction's error relative to the mean over layers, in contribution."""
    learning_rate: float
    """Starting learning rate, at which the same number of steps moves the policy equally far for every candidate."""


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """Settings of a race."""

    signature: str = ""
    """Identifies the rest of the configuration. Two races share a storage only if they share this."""
    seed: int
    num_layers: int
    """Number of blocks of the model."""
    is_pretrained: bool = False
    """True for a model to which the depth prior applies: predicted better, with errors that are smooth in depth."""
    total_steps: int
    """Optimizer steps of the full run; no short run is longer."""
    budget: Cost
    """Maximum cost of the race, in generated tokens and in layer-tokens."""
    step_cost: Callable[[Layers], Cost]
    """Returns the cost of one optimizer step of these layers, rollouts included."""
    eval_cost: Cost
    """Cost of scoring one arm on all `select` items."""
    earlier: Cost = Cost()
    """Cost of finding before the race. Where it took longer than such work takes in the race, the race is shorter by
    that time. Without seconds, as for small models, no decision depends on the machine."""
    regret: float = 0.05
    """Acceptable loss of contribution. The race stops as tied once the leader's expected loss is at most this."""
    confidence: float = 0.95
    """Probability of being the best from which the leader is clear."""
    rate_span: float = 4.0
    """Learning rates are searched between the starting rate divided and multiplied by this."""
    fixed_rate: bool = False
    """True if the user gave the learning rate, so that no other is tried."""

    def rate_of(self, candidate: Candidate, rate_index: int) -> float:
        """Returns `rate_span ** RATE_STEPS[rate_index]` times the starting rate, which stays if it is fixed."""
        if self.fixed_rate:
            return candidate.learning_rate
        return candidate.learning_rate * self.rate_span ** RATE_STEPS[rate_index]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Identifies an arm independently of its step: layers, learning rate and seed."""

    layers: tuple[int, ...]
    rate_index: int = 0
    """Index into `RATE_STEPS`; 0 is the starting rate."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One short run, which continues a slot from one step to another. It is one Optuna trial."""

    slot: Slot
    from_step: int
    to_step: int

    @property
    def key(self) -> str:
        """Name of the run in every process."""
        slot = self.slot
        return f"layer-{layers_text(slot.layers)}_rate-{slot.rate_index}_seed-{slot.seed}_step-{self.to_step}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The state of a race."""

    leader: tuple[int, ...]
    probability: float
    """Probability that the leader is the best candidate, after the last whole batch."""
    spent: Cost
    """Cost of all finished runs."""


@dataclass(frozen=True, kw_only=True)
class RacedCandidate:
    """One candidate of the ranking: predicted, measured and posterior values."""

    layers: tuple[int, ...]
    predicted: float
    measured: Rung | None
    """The last run of the candidate's best arm; None if none of its runs finished."""
    expected: float
    """Posterior mean of the contribution after a full run."""
    expected_low: float | None
    """Lower end of the posterior's 80% interval; None for a candidate that cannot be chosen."""
    expected_high: float | None
    probability_best: float
    failed: str | None
    """Reason of the first failed run of these layers, or None."""
    rungs: tuple[Rung, ...]
    """Finished runs, each with its mean gain over the base model on the `select` items and a 95% interval."""


@dataclass(frozen=True, kw_only=True)
class RaceOutcome:
    """The result of a race."""

    best: tuple[int, ...]
    tied: tuple[tuple[int, ...], ...]
    """Other layers that cannot be told apart from the best; empty if the verdict is clear."""
    verdict: RaceVerdict
    stop_reason: str
    expected_regret: float
    """Expected loss of contribution by choosing `best` instead of the truly best candidate."""
    winner: Arm
    """Arm of `best` at its best learning rate, with its last checkpoint; at step 0 if it was never trained."""
    ranking: tuple[RacedCandidate, ...]
    """Every candidate once, most probable first."""
    spent: Cost
