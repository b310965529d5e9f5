"""Computes the log-probabilities of completions under a policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from autolayer.rollouts.types import Rollouts
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
    def of(cls, rollouts: Rollouts, pad_token_id: int, device: torch.device) -> ScoreBatch:
        """Builds the batch of some rollouts.

        Args:
            rollouts: B prompts with their completions.
            pad_token_id: Token that fills the sequences up.
            device: Device of the tensors.
        """
        triples = list(zip(rollouts.prompt_ids, rollouts.completion_ids, rollouts.own_masks(), strict=True))
        width = max(len(prompt) + len(completion) for prompt, completion, _ in triples)

        def padded(fill: int, make) -> torch.Tensor:
            rows = [make(*triple) for triple in triples]
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

        return cls(
            input_ids=padded(pad_token_id, lambda p, c, own: p + c),
            attention_mask=padded(0, lambda p, c, own: [1] * (len(p) + len(c))),
            completion_mask=padded(0, lambda p, c, own: [0] * len(p) + own),
        )

    def split(self, max_sequences: int) -> Iterator[tuple[slice, ScoreBatch]]:
        """Yields micro-batches of at most `max_sequences` sequences, each with the slice of rows that it covers."""
        for start in range(0, len(self.input_ids), max_sequences):
            rows = slice(start, min(start + max_sequences, len(self.input_ids)))
            yield (
                rows,
                ScoreBatch(
                    input_ids=self.input_ids[rows],
                    attention_mask=self.attention_mask[rows],
                    completion_mask=self.completion_mask[rows],
                ),
            )


@contextlib.contextmanager
def scoring(model: PreTrainedModel, temperature: float) -> Iterator[None]:
    """Prepares a model for `log_probs` while the block runs: eval mode, and TRL's fused output head.

    The fused head computes log-probabilities without ever holding all logits, (B, T, vocabulary), in memory.

    Args:
        model: The policy; its mode and its forward method are restored when the block ends.
        temperature: Sampling temperature, by which logits are divided.
    """
    before = model.__dict__.get("forward")
    training = model.training
    try:
        add_fused_lm_head(model, temperature=temperature)
        model.eval()
        yield
    finally:
        model.train(training)
        if before is None:
            model.__dict__.pop("forward", None)
        else:
            model.__dict__["forward"] = before


def log_probs(model: PreTrainedModel, batch: ScoreBatch) -> torch.Tensor:
    """Returns the log-probability of every completion token under the model, (B, T - 1), and 0 at all other tokens.

    Use it inside `scoring(model, temperature)` only.

    Args:
        model: The policy.
        batch: B sequences.
    """
    labels = batch.input_ids.masked_fill(batch.completion_mask == 0, -100)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, fused_lm_head=True)
    return output.log_probs
