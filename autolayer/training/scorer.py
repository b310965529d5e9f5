"""Scores completions: computes their log-probabilities under the policy, by whole or partial forward passes."""

import time
from functools import cached_property

import torch

from autolayer.core.costs import Cost, PassSize
from autolayer.core.layer_set import Layers
from autolayer.distributed.process_group import ProcessGroup
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.rollouts import Rollouts
from autolayer.training.accounting import Account
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.out_of_memory import MicroBatching
from autolayer.training.partial_forward import PartialForward, can_start_midway
from autolayer.training.prefix_trees import pass_size
from autolayer.training.scored_passes import computed


class Scorer:
    """Scores completions with the weights now in the model, and charges what that costs.

    All ranks of the process group score the same completions and get the same numbers.
    """

    def __init__(
        self, engine: Engine, micro_batching: MicroBatching, account: Account, process_group: ProcessGroup
    ) -> None:
        self.model, self.engine, self.micro_batching = engine.model, engine, micro_batching
        self.account, self.process_group = account, process_group

    def batch(self, rollouts: Rollouts) -> ScoreBatch:
        """Returns the sequences of some rollouts, padded, on the model's device."""
        return ScoreBatch.of(rollouts, self.engine.pad_token_id, self.model.device)

    def partial_forward(self, batch: ScoreBatch) -> PartialForward:
        """Returns partial passes that score a batch repeatedly while one layer changes; see `PartialForward`.

        If the blocks of the model exchange more than a hidden state, all passes are whole ones.
        """
        return PartialForward(self.model, self._micro_batches(batch), fixed=not self.starts_midway)

    @cached_property
    def starts_midway(self) -> bool:
        """True if a forward pass can start at a block in the middle; tested once by a few short passes."""
        with scoring(self.model, self.engine.temperature), torch.no_grad():
            return self.process_group.broadcast(can_start_midway(self.model))

    def shared_below(self, layers: Layers) -> int:
        """Returns the block below which the policy, with these layers trained, and its KL reference share a pass."""
        return min(layers) if layers != "full" and self.starts_midway else 0

    def log_probs(self, batch: ScoreBatch | PartialForward) -> torch.Tensor:
        """Returns the log-probabilities of the completions, (B, T - 1). Use it inside `logprobs.scoring`."""
        started, before = time.perf_counter(), computed(self.model)
        passes = batch if isinstance(batch, PartialForward) else PartialForward(self.model, self._micro_batches(batch))
        result = torch.cat(list(passes.log_probs()))
        if self.process_group.world_size > 1:  # ranks decide by these numbers, which may differ in rounding
            result = self.process_group.broadcast(result.cpu()).to(result.device)
        size = computed(self.model) - before
        self.account.charge(self.account.costs.forward(size, passes.layer), time.perf_counter() - started)
        return result

    def move_to(self, passes: PartialForward, layer: int) -> None:
        """Makes partial passes start at a layer, whose input is computed with the weights now in the model."""
        started, before = time.perf_counter(), computed(self.model)
        num_blocks = passes.move_to(layer)
        tokens = (computed(self.model) - before).tokens  # the head is not reached
        self.account.charge(Cost(layer_tokens=tokens * num_blocks), time.perf_counter() - started)

    def pass_size(self, rollouts: Rollouts) -> PassSize:
        """Returns the size of the passes that score some rollouts. Others have been scored before."""
        parts = self._micro_batches(self.batch(rollouts))
        return sum(
            (pass_size(self.model, each.input_ids, each.attention_mask, each.labels) for each in parts), PassSize()
        )

    def _micro_batches(self, batch: ScoreBatch) -> list[ScoreBatch]:
        return [part for _, part in batch.split(self.micro_batching.sequences(batch.input_ids.shape[1]))]
