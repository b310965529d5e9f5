"""Forward passes whose output head works only at the positions that predict a scored token, and their size.

TRL's fused head leaves out the other positions on a GPU alone. On a CPU it would compute the logits of every prompt
token, which takes longer than the blocks where the vocabulary is large and completions are short.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from autolayer.core.costs import PassSize

# B sequences of T tokens, M scored tokens.

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""Fields of the fused head's output that have one value for each token."""

_computed: WeakKeyDictionary[PreTrainedModel, PassSize] = WeakKeyDictionary()


def computed(model: PreTrainedModel) -> PassSize:
    """Returns the size of all passes of this model that `shared_prefixes` has made so far, padding included."""
    return _computed.get(model, PassSize())


def count(model: PreTrainedModel, size: PassSize) -> None:
    """Adds the size of a pass that begins."""
    _computed[model] = computed(model) + size


def score_at(
    model: PreTrainedModel, fused: Any, inputs: dict[str, Any], places_M: torch.Tensor, tokens_M: torch.Tensor
) -> Any:
    """Runs a pass and returns the fused head's output for M tokens, (1, M).

    `places_M` are the positions that predict them, counted over all rows of the pass.
    """

    def keep_scored(module: torch.nn.Module, args: Any, output: Any) -> Any:
        states = output.last_hidden_state
        output.last_hidden_state = states.flatten(0, 1)[places_M.to(states.device)][None]
        return output

    with model.base_model.register_forward_hook(keep_scored):
        return fused(**inputs, shift_labels=tokens_M[None])


def score_rows(model: PreTrainedModel, fused: Any, inputs: dict[str, Any], labels: torch.Tensor) -> Any:
    """Runs a pass over whole sequences and returns the fused head's output, (B, T - 1) and 0 where no label is."""
    wanted = labels[:, 1:] != -100
    rows, columns = wanted.nonzero(as_tuple=True)
    output = score_at(model, fused, inputs, rows * labels.shape[1] + columns, labels[:, 1:][wanted])
    for name in PER_TOKEN:
        if (values := getattr(output, name)) is not None:
            mask = wanted.to(values.device)
            setattr(output, name, values.new_zeros(mask.shape).masked_scatter(mask, values[0]))
    return output
