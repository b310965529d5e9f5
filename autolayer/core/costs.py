"""What things cost, in units that do not depend on the machine. Pure arithmetic, no torch.

A *layer-token* is one token through one block forward. Its activation gradient costs one more, its weight
gradient one more; embedding and head count by their share of a block's parameters. A generated token goes through
all blocks once, too. That it takes longer than one that is read has to be measured, so generated tokens are also
counted apart (`CostModel.total` brings the two together).
"""

from __future__ import annotations

from dataclasses import dataclass

from autolayer.core.layer_set import Layers


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An amount of work. Seconds are reported, never decided on: a decision must not depend on the machine."""

    generated_tokens: float = 0.0
    layer_tokens: float = 0.0
    """All of them: forward and backward passes, and the forward passes that generated tokens are."""
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
        """True if neither generation nor all work together exceeds the budget's.

        Then time does not exceed it either, whatever a generated token takes here: at the least a forward pass over it.
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

    def generate(self, read: float, written: float) -> Cost:
        """Writing so many tokens, with so many read for it."""
        return self.forward(read + written) + Cost(generated_tokens=written)

    def train(self, tokens: float, layers: Layers) -> Cost:
        """Forward and backward over `tokens`; the backward stops at the lowest trained layer."""
        if layers == "full":
            backward = 2 * (self.num_layers + self.head_ratio)
        else:
            backward = (self.num_layers - min(layers)) + self.head_ratio + len(layers)
        return self.forward(tokens) + Cost(layer_tokens=tokens * backward)

    def total(self, cost: Cost, exchange_rate: float) -> float:
        """Layer-tokens, with generated ones as dear as they are.

        Args:
            cost: What was done.
            exchange_rate: Time of generating a token over time of a forward pass over one, as measured; 1 at the least.
        """
        return cost.layer_tokens + cost.generated_tokens * (exchange_rate - 1) * (self.num_layers + self.head_ratio)
