"""What things cost, in units that do not depend on the machine. Pure arithmetic, no torch.

A *layer-token* is one token through one block forward. Its activation gradient costs one more, its weight
gradient one more; embedding and head count by their share of a block's parameters. Generated tokens are kept
apart, because what one costs in layer-tokens has to be measured (`CostModel.total` brings the two together).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autolayer.arms import Layers


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An amount of work. Seconds are reported, never decided on: a decision must not depend on the machine."""

    generated_tokens: float = 0.0
    layer_tokens: float = 0.0
    """Forward and backward only, without generation."""
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            generated_tokens=self.generated_tokens + other.generated_tokens,
            layer_tokens=self.layer_tokens + other.layer_tokens,
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Cost:
        return Cost(
            generated_tokens=self.generated_tokens * factor,
            layer_tokens=self.layer_tokens * factor,
            seconds=self.seconds * factor,
        )

    def fits(self, budget: Cost) -> bool:
        """True if neither generation nor training exceeds the budget's.

        Then their sum does not exceed it either, whatever a generated token turns out to cost here.
        """
        return self.generated_tokens <= budget.generated_tokens and self.layer_tokens <= budget.layer_tokens


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Layer-tokens of forward and backward passes for one model."""

    num_layers: int
    head_ratio: float
    """Parameters of the output head divided by those of one block."""

    def forward(self, tokens: float, start: int = 0) -> Cost:
        """Scoring `tokens` with gradients off, from block `start` up."""
        return Cost(layer_tokens=tokens * (self.num_layers - start + self.head_ratio))

    def train(self, tokens: float, layers: Layers) -> Cost:
        """Forward and backward over `tokens`; the backward stops at the lowest trained layer."""
        if layers == "full":
            backward = 2 * (self.num_layers + self.head_ratio)
        else:
            backward = (self.num_layers - min(layers)) + self.head_ratio + len(layers)
        return self.forward(tokens) + Cost(layer_tokens=tokens * backward)

    def total(self, cost: Cost, exchange_rate: float) -> float:
        """Layer-tokens including generation.

        Args:
            cost: What was done.
            exchange_rate: Time of generating a token over time of a forward pass over one, as measured.
        """
        return cost.layer_tokens + cost.generated_tokens * exchange_rate * (self.num_layers + self.head_ratio)
