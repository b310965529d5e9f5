"""Passes without shared prefixes hand the output head the scored positions alone, and count what they compute."""

from typing import Any

import pytest
import torch
from tiny_models import build_model
from trl.trainer import utils

from autolayer.core.costs import PassSize
from autolayer.models.layers import find_layers
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring
from autolayer.training.scored_passes import computed
from autolayer.training.trl_compat import add_fused_lm_head

LENGTHS = ((5, 3), (8, 1), (2, 6))  # prompt, completion


def make_batch() -> ScoreBatch:
    ids, mask, own = (torch.zeros(3, 9, dtype=torch.long) for _ in range(3))
    for row, (prompt, completion) in enumerate(LENGTHS):
        ids[row, : prompt + completion] = torch.arange(prompt + completion) + 5 * row + 3
        mask[row, : prompt + completion] = 1
        own[row, prompt : prompt + completion] = 1
    return ScoreBatch(input_ids=ids, attention_mask=mask, completion_mask=own)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_scored_positions_give_what_all_positions_give(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, seen = build_model(architecture), make_batch(), []
    labels = batch.input_ids.masked_fill(batch.completion_mask == 0, -100)
    weights = torch.linspace(-1, 1, 24).view(3, 8)
    kernel = utils._ChunkedLogProbFunction  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

    class Spy(kernel):
        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor, *args: Any) -> Any:
            seen.append(len(hidden))
            return kernel.forward(ctx, hidden, *args)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Spy)
    parameters = list(find_layers(model)[0].parameters())
    start = computed(model)
    with scoring(model, 0.7, shares_prefixes=False):
        found = log_probs(model, batch)
        gradients = torch.autograd.grad((found * weights).sum(), parameters)
    assert seen == [10] and computed(model) - start == PassSize(tokens=27, scored=10)
    add_fused_lm_head(model, temperature=0.7)
    every = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, fused_lm_head=True)
    expected = torch.autograd.grad((every.log_probs * weights).sum(), parameters)
    assert seen == [10, 24], "the head of TRL alone would need no help on this device"
    torch.testing.assert_close(found, every.log_probs)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_passes_over_trees_count_their_nodes() -> None:
    model, ids = build_model("llama"), torch.arange(8).repeat(4, 1)
    ids[:, 7] += torch.arange(4)
    group = ScoreBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        completion_mask=torch.zeros_like(ids).index_fill(1, torch.tensor(7), 1),
    )
    with scoring(model, 1.0), torch.no_grad():
        start = computed(model)
        log_probs(model, group)
    assert computed(model) - start == PassSize(tokens=11, scored=4)  # seven tokens of the prompt, four of the answers
