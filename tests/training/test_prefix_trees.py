"""Completions scored in trees of shared prefixes get the log-probabilities and gradients that they get one by one."""

from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, build_model
from transformers import AutoConfig, AutoModelForCausalLM

from autolayer.models.layers import find_layers
from autolayer.training import prefix_trees
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring
from autolayer.training.prefix_trees import PrefixTrees, by_sequence

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8]]
COMPLETIONS = [[[20, 21], [20, 22, 23], [20, 21]], [[9, 9, 9], [30], [9, 9, 31]]]
"""Completions that are alike, one that begins like another prompt, and one of a single token."""


def make_batch(*, padded_left: bool = False) -> ScoreBatch:
    rows = [(p, c) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]
    ids, mask, own = (torch.zeros(len(rows), 9, dtype=torch.long) for _ in range(3))
    for row, (prompt, completion) in enumerate(rows):
        start = 6 - len(prompt) if padded_left else 0
        place = slice(start, start + len(prompt) + len(completion))
        ids[row, place], mask[row, place] = torch.tensor(prompt + completion), 1
        own[row, place.stop - len(completion) : place.stop] = 1
    return ScoreBatch(input_ids=ids, attention_mask=mask, completion_mask=own)


def count_tokens(model: Any) -> list[int]:
    """Number of tokens of each pass from now on, padding included."""
    counts: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return counts


def scored(model: Any, batch: ScoreBatch, monkeypatch: pytest.MonkeyPatch, *, trees: bool) -> tuple[Any, Any]:
    """Log-probabilities, and the gradient of a weighted sum of them."""
    with monkeypatch.context() as patch, scoring(model, 0.7):
        if not trees:
            patch.setattr(PrefixTrees, "of", lambda *args: None)
            patch.setattr(prefix_trees, "_can_share", lambda *args: True)
        values = log_probs(model, batch)
        weights = torch.arange(1.0, values.numel() + 1).view_as(values)
        gradients = torch.autograd.grad((values * weights).sum(), list(find_layers(model)[1].parameters()))
    return values.detach(), gradients


@pytest.mark.parametrize("padded_left", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mixtral"])
def test_trees_give_what_whole_sequences_give(
    architecture: str, attention: str, padded_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build_model(architecture), make_batch(padded_left=padded_left)
    model.set_attn_implementation(attention)
    counts = count_tokens(model)
    values, gradients = scored(model, batch, monkeypatch, trees=True)
    assert counts[-1] == 2 * 10  # two prompts, the larger tree of ten nodes instead of six sequences of nine
    expected, expected_gradients = scored(model, batch, monkeypatch, trees=False)
    assert counts[-1] == 6 * 9
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm()


LOCAL = {"num_layers": 2, "num_heads": 2, "attention_types": [[["local"], 2]]}


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("architecture", "field", "least", "fields"),
    [
        ("mistral", "sliding_window", 24, {"num_key_value_heads": 2}),
        ("qwen3", "sliding_window", 24, {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 0}),
        ("gpt_neo", "window_size", 20 + 4 * 4, LOCAL),  # it counts the tokens of the tree
    ],
)
def test_sequences_longer_than_an_attention_reads_are_not_packed(
    architecture: str, field: str, least: int, fields: dict[str, Any], reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = {**small, "intermediate_size": 16, "initializer_range": 0.5, field: least - (not reads), **fields}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **values))
    ids, own = torch.arange(24).repeat(4, 1), torch.zeros(4, 24, dtype=torch.long)
    ids[:, 20:] += 8 * torch.arange(4)[:, None]
    own[:, 20:] = 1
    batch = ScoreBatch(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=own)
    counts = count_tokens(model)
    found, _ = scored(model, batch, monkeypatch, trees=True)
    assert counts[-1] == (20 + 4 * 4 if reads else 4 * 24)
    torch.testing.assert_close(found, scored(model, batch, monkeypatch, trees=False)[0], rtol=1e-4, atol=1e-5)


def test_recurrent_blocks_score_whole_sequences() -> None:
    config = AutoConfig.for_model(
        "mamba", hidden_size=16, num_hidden_layers=2, vocab_size=97, state_size=4, time_step_rank=2
    )
    model, batch = AutoModelForCausalLM.from_config(config), make_batch()
    with scoring(model, 1.0), torch.no_grad():
        found = log_probs(model, batch)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    expected = logits.log_softmax(-1).gather(2, batch.input_ids[:, 1:, None])[..., 0] * batch.completion_mask[:, 1:]
    torch.testing.assert_close(found, expected)


def test_long_completions_are_not_packed() -> None:
    """They share little, and the mask of a tree grows with the square of its size."""
    batch = make_batch()
    unlike = ScoreBatch(
        input_ids=torch.arange(54).view(6, 9),
        attention_mask=torch.ones(6, 9, dtype=torch.long),
        completion_mask=batch.completion_mask,
    )
    labels = unlike.input_ids.masked_fill(unlike.completion_mask == 0, -100)
    assert PrefixTrees.of(unlike.input_ids, unlike.attention_mask, labels, torch.float32) is None


def test_hidden_states_are_read_by_sequence() -> None:
    """Hooks see them as in a pass over the whole sequences."""
    model, batch, states = build_model("llama"), make_batch(), []
    model.get_decoder().register_forward_hook(lambda m, args, output: states.append(by_sequence(output[0])))
    with scoring(model, 1.0), torch.no_grad():
        log_probs(model, batch)
        found = states[-1]
    expected = model.get_decoder()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)
