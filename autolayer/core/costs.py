"""Costs of work in units that do not depend on the machine. Pure arithmetic, imports no torch.

A *layer-token* is the forward pass of one token through one block. The gradient of its activations costs another
layer-token, and the gradient of the block's weights a third. The output head counts as a fraction of a block, by its
number of parameters, and only at the positions that predict a scored token. What is counted is what is computed: a
token that one pass computes for several completions counts once (training/prefix_trees.py), and padding counts as well.
Otherwise work and time would differ, since probes and training share unequally much. Generated tokens are also counted
by themselves, because generating one takes longer than reading one, by a factor that has to be measured
(`CostModel.total`).
"""

from dataclasses import dataclass
from typing import Self

from autolayer.core.layer_set import Layers


class _Amounts:
    """Base of records whose fields are all amounts, which add up and scale together."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Self:
        return type(self)(**{name: value * factor for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Cost(_Amounts):
    """An amount of work. The measured seconds only end the race of a large model earlier (`RaceConfig.earlier`)."""

    generated_tokens: float = 0.0
    layer_tokens: float = 0.0
    """Layer-tokens of all forward and backward passes, including one forward pass per generated token."""
    seconds: float = 0.0

    def fits(self, budget: Self) -> bool:
        """Returns True if neither the generated tokens nor the layer-tokens exceed the budget."""
        # Nor does the time then, because generating a token takes at least as long as a forward pass over it.
        return self.generated_tokens <= budget.generated_tokens and self.layer_tokens <= budget.layer_tokens


MAX_TREE, TREE_PAYS = 1024, 0.75
"""Tokens of a prompt and its completions up to which they share prefixes, because the mask of a tree has the square of
that many entries; and the share of the separate sequences' tokens that the trees may have at most."""


GRADIENT_TOKENS = 200
"""Tokens of a forward pass through a block that take as long as writing the gradient of its weights once. It counts in
small passes with gradients of all layers (measured on a CPU; a GPU's copies to host memory take longer)."""


@dataclass(frozen=True, kw_only=True)
class PassSize(_Amounts):
    """The size of forward passes: tokens that go through the blocks, and positions at which the head predicts one."""

    tokens: float = 0.0
    scored: float = 0.0

    @classmethod
    def estimated(cls, prompt: float, completion: float, num_completions: int) -> Self:
        """Returns the size for one prompt and some completions that share nothing else, by their mean lengths."""
        tree, rows = prompt + num_completions * completion, num_completions * (prompt + completion)
        shares = tree <= MAX_TREE and tree <= TREE_PAYS * rows
        return cls(tokens=tree if shares else rows, scored=num_completions * completion)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Layer-tokens of forward and backward passes for one model."""

    num_layers: int
    head_ratio: float
    """Parameters of the output head divided by those of one block."""

    def forward(self, size: PassSize, start: int = 0) -> Cost:
        """Returns the cost of a forward pass without gradients, from block `start` up."""
        return Cost(layer_tokens=size.tokens * (self.num_layers - start) + size.scored * self.head_ratio)

    def generate(self, read: float, written: float) -> Cost:
        """Returns the cost of generating `written` tokens after reading `read` tokens."""
        return self.forward(PassSize(tokens=read + written, scored=written)) + Cost(generated_tokens=written)

    def train(self, size: PassSize, layers: Layers) -> Cost:
        """Returns the cost of a forward pass and of a backward pass that stops at the lowest trained layer."""
        if layers == "full":
            return self.forward(size) * 3
        trained = Cost(layer_tokens=size.tokens * len(layers))
        return self.forward(size) + self.forward(size, min(layers)) + trained

    def keep_gradients(self, num_layers: int) -> Cost:
        """Returns the cost of writing the gradients of some layers' weights, whatever the size of the pass."""
        return Cost(layer_tokens=GRADIENT_TOKENS * num_layers)

    def total(self, cost: Cost, exchange_rate: float) -> float:
        """Returns layer-tokens; a generated token counts `exchange_rate` (at least 1) times the time of a read one."""
        return cost.layer_tokens + cost.generated_tokens * (exchange_rate - 1) * (self.num_layers + self.head_ratio)
