"""Costs of work in units that do not depend on the machine. Pure arithmetic, imports no torch.

A *layer-token* is the forward pass of one token through one block. The gradient of its activations costs another
layer-token, and the gradient of the block's weights a third. The output head counts as a fraction of a block, by its
number of parameters. A token that several completions share counts for each of them, although one pass may serve all
(training/prefix_trees.py). Generated tokens are also counted by themselves, because generating one takes longer than
reading one, by a factor that has to be measured (`CostModel.total`).
"""

from dataclasses import dataclass
from typing import Self

from autolayer.core.layer_set import Layers


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An amount of work. The measured seconds are only reported, because no decision may depend on the machine."""

    generated_tokens: float = 0.0
    layer_tokens: float = 0.0
    """Layer-tokens of all forward and backward passes, including one forward pass per generated token."""
    seconds: float = 0.0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            generated_tokens=self.generated_tokens + other.generated_tokens,
            layer_tokens=self.layer_tokens + other.layer_tokens,
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Self:
        return type(self)(
            generated_tokens=self.generated_tokens * factor,
            layer_tokens=self.layer_tokens * factor,
            seconds=self.seconds * factor,
        )

    def fits(self, budget: Self) -> bool:
        """Returns True if neither the generated tokens nor the layer-tokens exceed the budget."""
        # Nor does the time then, because generating a token takes at least as long as a forward pass over it.
        return self.generated_tokens <= budget.generated_tokens and self.layer_tokens <= budget.layer_tokens


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Layer-tokens of forward and backward passes for one model."""

    num_layers: int
    head_ratio: float
    """Parameters of the output head divided by those of one block."""

    def forward(self, tokens: float, start: int = 0) -> Cost:
        """Returns the cost of a forward pass over `tokens` tokens without gradients, from block `start` up."""
        return Cost(layer_tokens=tokens * (self.num_layers - start + self.head_ratio))

    def generate(self, read: float, written: float) -> Cost:
        """Returns the cost of generating `written` tokens after reading `read` tokens."""
        return self.forward(read + written) + Cost(generated_tokens=written)

    def train(self, tokens: float, layers: Layers) -> Cost:
        """Returns the cost of a forward pass and of a backward pass that stops at the lowest trained layer."""
        if layers == "full":
            backward = 2 * (self.num_layers + self.head_ratio)
        else:
            backward = (self.num_layers - min(layers)) + self.head_ratio + len(layers)
        return self.forward(tokens) + Cost(layer_tokens=tokens * backward)

    def total(self, cost: Cost, exchange_rate: float) -> float:
        """Returns layer-tokens; a generated token counts `exchange_rate` (at least 1) times the time of a read one."""
        return cost.layer_tokens + cost.generated_tokens * (exchange_rate - 1) * (self.num_layers + self.head_ratio)
