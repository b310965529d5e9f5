"""Top-k and top-p: what an evaluation may cut off a distribution before it is sampled from.

Training and every comparison of the search sample from the policy itself, which has neither.
"""

from __future__ import annotations

import torch


def mask_tail(logits: torch.Tensor, *, top_k: int, top_p: float) -> torch.Tensor:
    """Sets the logits of unlikely tokens to minus infinity.

    First all but the `top_k` largest go (0 keeps all; ties with the last of them stay). Of the rest, renormalised, the
    fewest likeliest tokens that together hold at least `top_p` stay (Holtzman et al. 2020), always one; of equals the
    one with the smaller id first.

    Args:
        logits: Over the temperature already, shape (..., vocabulary).
        top_k: Tokens that stay, at the most.
        top_p: Share of the probability that stays, at the least.

    Returns:
        A new tensor of the same shape; `logits` itself where nothing is cut.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        share = ordered.softmax(-1)
        before = share.cumsum(-1) - share  # what the likelier tokens hold without this one
        cut = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
        cut.scatter_(-1, order[..., :1], False)  # rounding never takes the likeliest
        logits = logits.masked_fill(cut, -torch.inf)
    return logits
