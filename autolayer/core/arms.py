"""What the search moves around: an arm, and what one rung of it returned. Pure records, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from autolayer.core.costs import Cost
from autolayer.core.layer_set import Layers


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is trained, and how far it has come. Arms are never changed, only replaced."""

    layers: Layers
    learning_rate: float
    seed: int
    """Fixes prompts, their order and every request's sampling noise: arms of one seed are paired."""
    step: int = 0
    """Optimizer steps done."""
    checkpoint: str | None = None
    """Trained weights and Adam state at `step`, relative to the run folder; None at step 0."""

    @property
    def name(self) -> str:
        """Its layers, for people: '16', '10,11,12' or 'full'."""
        return "full" if self.layers == "full" else ",".join(map(str, self.layers))

    @property
    def key(self) -> str:
        """Names the arm whatever its step; also its folder under `arms/`."""
        return f"layer-{self.name}_rate-{self.learning_rate:.9g}_seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """What running an arm up to a rung's step returned.

    Two arms of one seed at one rung are paired item by item: same prompts, same order, same sampling noise.
    """

    arm: Arm
    """The arm, advanced to the rung's step."""
    select_rewards_I: tuple[float, ...]
    """Reward per `select` item after the rung's last step."""
    train_rewards_P: tuple[float, ...]
    """Mean reward of each training group of the rung, in order: on-policy evidence that comes for free."""
    cost: Cost = field(default_factory=Cost)
