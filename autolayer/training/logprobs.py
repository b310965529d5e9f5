"""Computes the log-probabilities of completions under a policy."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from autolayer.models.fp32 import restore_forward
from autolayer.rollouts.rollouts import Rollouts
from autolayer.training.prefix_trees import shared_prefixes
from autolayer.training.trl_compat import add_fused_lm_head

# B sequences, T tokens.


@dataclass(frozen=True, kw_only=True)
class ScoreBatch:
    """A batch of sequences, each a prompt and its completion, padded on the right."""

    input_ids: torch.Tensor
    """(B, T)"""
    attention_mask: torch.Tensor
    """(B, T), 1 at real tokens."""
    completion_mask: torch.Tensor
    """(B, T), 1 at the tokens that the model generated."""

    @classmethod
    def of(cls, rollouts: Rollouts, pad_token_id: int, device: torch.device) -> Self:
        """Builds the batch of some rollouts."""

        def padded(rows: Sequence[list[int]], fill: int = 0) -> torch.Tensor:
            return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill).to(device)

        pairs = list(zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True))
        masks = zip(rollouts.prompt_ids, rollouts.own_masks(), strict=True)
        return cls(
            input_ids=padded([prompt + completion for prompt, completion in pairs], pad_token_id),
            attention_mask=padded([[1] * (len(prompt) + len(completion)) for prompt, completion in pairs]),
            completion_mask=padded([[0] * len(prompt) + mask for prompt, mask in masks]),
        )

    @property
    def labels(self) -> torch.Tensor:
        """(B, T): the tokens that the model generated, and -100 elsewhere."""
        return self.input_ids.masked_fill(self.completion_mask == 0, -100)

    def take(self, rows: slice | torch.Tensor) -> Self:
        """Returns the batch of some rows."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def split(self, max_sequences: int) -> Iterator[tuple[slice, Self]]:
        """Yields micro-batches of at most `max_sequences` sequences, each with its slice of rows."""
        for start in range(0, len(self.input_ids), max_sequences):
            rows = slice(start, min(start + max_sequences, len(self.input_ids)))
            yield rows, self.take(rows)


@contextlib.contextmanager
def scoring(model: PreTrainedModel, temperature: float, *, shares_prefixes: bool = True) -> Iterator[None]:
    """Prepares a model for `log_probs` while the block runs: eval mode, and TRL's fused output head.

    The head divides logits by the sampling temperature, and never holds all logits, (B, T, vocabulary), in memory.
    Unless `shares_prefixes`, blocks see every sequence as a row of its own.
    """
    forward, training = model.__dict__.get("forward"), model.training
    try:
        add_fused_lm_head(model, temperature=temperature)
        model.eval()
        with shared_prefixes(model, shares=shares_prefixes):
            yield
    finally:
        model.train(training)
        restore_forward(model, forward)


def log_probs(model: PreTrainedModel, batch: ScoreBatch) -> torch.Tensor:
    """Returns the log-probability of each completion token, (B, T - 1), and 0 elsewhere. Use it inside `scoring`."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    return model(**inputs, fused_lm_head=True).log_probs
