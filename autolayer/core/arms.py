"""Arm and RungResult: what is trained, and the result of training it up to a rung. Imports no torch."""

from dataclasses import dataclass, field

from autolayer.core.costs import Cost
from autolayer.core.layer_set import Layers, layers_text


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Layers to train, their settings, and the steps done so far. Training returns a new Arm and changes none."""

    layers: Layers
    learning_rate: float
    seed: int
    """Seed of the order of the prompts and of the sampling noise; arms of one seed are paired."""
    step: int = 0
    checkpoint: str | None = None
    """Path of the file with trained weights and Adam state, relative to the run folder; None at step 0."""

    @property
    def name(self) -> str:
        """The layers in their shortest form, which a folder's name has room for: '16', '10-12' or 'full'."""
        return layers_text(self.layers)

    @property
    def key(self) -> str:
        """Name of the arm and of its folder under `arms/`; the same at every step."""
        return f"layer-{self.name}_rate-{self.learning_rate:.9g}_seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """The result of running an arm up to a rung; arms of one seed are paired: same items, order and sampling noise."""

    arm: Arm
    """The arm, advanced to the rung's step."""
    select_rewards_I: tuple[float, ...]
    """Reward per `select` item after the rung's last step."""
    train_rewards_P: tuple[float, ...]
    """Mean reward of each training group of the rung, in order. This on-policy evidence costs nothing extra."""
    cost: Cost = field(default_factory=Cost)
