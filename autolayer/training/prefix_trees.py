"""Scores the completions of a prompt in one tree of shared prefixes, so that tokens which they share are computed once.

A group of completions shares its prompt, and short ones share tokens of their own. Each prompt becomes one row, whose
tokens see only their ancestors and count positions along their own path. Prefix grouping (arXiv 2506.05433) shares the
prompt alone.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from autolayer.core.costs import MAX_TREE, TREE_PAYS, PassSize
from autolayer.models.fp32 import restore_forward
from autolayer.training.scored_passes import PER_TOKEN, count, score_at, score_rows

# B sequences of T tokens, R trees of N nodes (a token each), M scored nodes.

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
"""Largest difference of log-probabilities, in nats, that rounding explains."""
ROUNDING = 0.2
"""Largest error in bfloat16, as a share of the error that reading the siblings of a token as well makes."""

_SPAN = re.compile(r".*window(_size|_len)?|index_topk|attention_chunk_size|local_attention")
"""Fields of a configuration that say how many tokens an attention reads at most; a tree's mask shows it all of them."""


@dataclass(frozen=True, kw_only=True)
class PrefixTrees:
    """The sequences of a batch as trees."""

    input_ids: torch.Tensor
    """(R, N)"""
    positions: torch.Tensor
    """(R, N)"""
    mask: torch.Tensor
    """(R, 1, N, N), added to attention scores: 0 at a token's ancestors and itself."""
    parents_M: torch.Tensor
    """Node, counted over all trees, whose state predicts the scored token."""
    tokens_M: torch.Tensor
    scored_B_T: torch.Tensor
    """(B, T - 1): the scored token's place in M for each token but the first, -1 where none is scored."""
    nodes_B_T: torch.Tensor
    """(B, T): node of each token, 0 at padding."""

    @classmethod
    def of(
        cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
    ) -> Self | None:
        """Builds the trees of a batch, (B, T) each; returns None if they save too little.

        Sequences with the same tokens before the first label share a tree. Tokens without a label (-100) are read only.
        """
        if attention_mask.sum(1).max() > MAX_TREE:  # before the trees are built, which takes time
            return None
        device = input_ids.device
        ids, real, wanted = input_ids.tolist(), attention_mask.tolist(), (labels != -100).tolist()
        trees: dict[tuple[int, ...], _Tree] = {}
        places: list[tuple[_Tree, dict[int, int]]] = []
        for row_ids, row_real, row_wanted in zip(ids, real, wanted, strict=True):
            columns = [column for column, is_real in enumerate(row_real) if is_real]
            first = next((i for i, column in enumerate(columns) if row_wanted[column]), len(columns))
            tree = trees.setdefault(tuple(row_ids[column] for column in columns[:first]), _Tree())
            places.append((tree, dict(zip(columns, tree.add(row_ids[c] for c in columns), strict=True))))
        longest = max(len(tree.tokens) for tree in trees.values())
        if longest > MAX_TREE or longest * len(trees) > TREE_PAYS * input_ids.numel():
            return None
        offsets = {id(tree): row * longest for row, tree in enumerate(trees.values())}
        scored: dict[int, tuple[int, int, int]] = {}
        scored_B_T, nodes_B_T = torch.full(input_ids.shape, -1), torch.zeros(input_ids.shape, dtype=torch.long)
        for row, (tree, nodes) in enumerate(places):
            for column, node in nodes.items():
                nodes_B_T[row, column] = offset = offsets[id(tree)] + node
                if wanted[row][column] and tree.parents[node] >= 0:
                    pair = (len(scored), offsets[id(tree)] + tree.parents[node], tree.tokens[node])
                    scored_B_T[row, column] = scored.setdefault(offset, pair)[0]
        found = torch.tensor(list(scored.values()), dtype=torch.long).reshape(-1, 3)
        # A real token takes the place of padding, as in `trl_compat`: some models have no gradient at the pad token.
        fills = {"tokens": places[0][0].tokens[0], "depths": 0}
        padded = [pad_sequence([torch.tensor(getattr(tree, name)) for tree in trees.values()], batch_first=True,
                               padding_value=fill) for name, fill in fills.items()]  # fmt: skip
        return cls(
            input_ids=padded[0].to(device),
            positions=padded[1].to(device),
            mask=torch.stack([tree.mask(longest, dtype) for tree in trees.values()])[:, None].to(device),
            parents_M=found[:, 1].to(device),
            tokens_M=found[:, 2].to(device),
            scored_B_T=scored_B_T[:, 1:].to(device),
            nodes_B_T=nodes_B_T.to(device),
        )

    def unpack(self, values_M: torch.Tensor) -> torch.Tensor:
        """Returns the values of scored tokens as (B, T - 1), 0 elsewhere."""
        scored_B_T = self.scored_B_T.to(values_M.device)
        return torch.where(scored_B_T >= 0, values_M[scored_B_T.clamp(min=0)], 0)


class _Tree:
    """The tokens of one prompt and its completions, each after its parent."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}

    def add(self, tokens: Iterable[int]) -> list[int]:
        """Adds a sequence, and returns its nodes."""
        path = []
        parent = -1
        for depth, token in enumerate(tokens):
            node = self._nodes.setdefault((parent, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(depth)
            path.append(node)
            parent = node
        return path

    def mask(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        seen = torch.eye(size, dtype=torch.bool)  # padding sees itself, since a softmax over nothing is not a number
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return torch.zeros(size, size, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


@contextmanager
def shared_prefixes(model: PreTrainedModel, *, shares: bool = True) -> Iterator[None]:
    """Makes the fused head's passes score only tokens with a label, and share prefixes where that saves work.

    Use it where TRL's fused head is on the model. Models whose blocks do more than attend (recurrent ones), and
    attention that takes no mask of this kind, are found by a test and score their batches as they are; all do unless
    `shares`.
    """
    fused = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args or not kwargs.get("fused_lm_head") or kwargs.get("labels") is None:
            return fused(*args, **kwargs)
        labels, trees = kwargs.pop("labels"), None
        if shares and _can_share(model, fused):
            trees = _trees(model, kwargs["input_ids"], kwargs["attention_mask"], labels)
        count(model, _size(trees, labels))
        return score_rows(model, fused, kwargs, labels) if trees is None else _score(model, fused, trees, kwargs)

    before = model.__dict__.get("forward")
    try:
        model.forward = forward
        yield
    finally:
        restore_forward(model, before)


def pass_size(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> PassSize:
    """Returns the size of the pass that scores a batch, for a model that has scored one before."""
    return _size(_trees(model, ids, mask, labels) if _tested.get(model) else None, labels)


def _trees(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> PrefixTrees | None:
    """Returns the trees of a batch, or None if they save too little or a sequence is longer than an attention reads."""
    fields = model.config.get_text_config(decoder=True).to_dict()
    spans = {name: n for name, n in fields.items() if _SPAN.fullmatch(name) and type(n) is int and n > 0}
    if mask.sum(1).max() > min(spans.values(), default=MAX_TREE):
        return None
    trees = PrefixTrees.of(ids, mask, labels, model.dtype)
    # GPT-Neo alone counts its window along the row, where the siblings of a token lie between it and its ancestors.
    return trees if trees is None or trees.input_ids.shape[1] <= spans.get("window_size", MAX_TREE) else None


def _size(trees: PrefixTrees | None, labels: torch.Tensor) -> PassSize:
    if trees is None:
        return PassSize(tokens=labels.numel(), scored=int((labels[:, 1:] != -100).sum()))
    return PassSize(tokens=trees.input_ids.numel(), scored=len(trees.tokens_M))


current: list[PrefixTrees] = []
"""The trees of the pass that is running, for hooks that read hidden states."""


def by_sequence(states: torch.Tensor) -> torch.Tensor:
    """Returns the hidden states of the pass that is running as (B, T, D), also where it computes trees, (R, N, D)."""
    return states.flatten(0, 1)[current[-1].nodes_B_T.to(states.device)] if current else states


def _score(model: PreTrainedModel, fused: Any, trees: PrefixTrees, kwargs: dict[str, Any]) -> Any:
    packed = {"input_ids": trees.input_ids, "attention_mask": trees.mask, "position_ids": trees.positions}
    current.append(trees)
    try:
        output = score_at(model, fused, kwargs | packed, trees.parents_M, trees.tokens_M)
    finally:
        current.pop()
    for name in PER_TOKEN:
        if (values := getattr(output, name)) is not None:
            setattr(output, name, trees.unpack(values[0]))
    return output


_tested: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _can_share(model: PreTrainedModel, fused: Any) -> bool:
    """Returns whether trees give the same log-probabilities as the batch itself, tested once on short sequences."""
    if model not in _tested:
        _tested[model] = False  # blocks that fail in the test below fail in it alone
        _tested[model] = _agrees(model, fused)
    return _tested[model]


def _agrees(model: PreTrainedModel, fused: Any) -> bool:
    embedding: Any = model.get_input_embeddings()
    rows = torch.arange(4)[:, None]
    ids = torch.arange(16).repeat(4, 1) + 16 * (rows // 2)  # two prompts, two completions of each
    ids[1::2, 12:] += 32
    mask = torch.ones_like(ids)
    mask[1, 14:] = 0  # padding
    ids, mask = (ids % len(embedding.weight)).to(model.device), mask.to(model.device)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :8] = -100
    kwargs = {"input_ids": ids, "attention_mask": mask, "fused_lm_head": True}
    trees = PrefixTrees.of(ids, mask, labels, model.dtype)
    assert trees is not None
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain = fused(**kwargs, labels=labels).log_probs
            found = _score(model, fused, trees, kwargs).log_probs
            causal = torch.full_like(trees.mask, torch.finfo(model.dtype).min).triu(1)
            blind = _score(model, fused, replace(trees, mask=causal), kwargs).log_probs
    except Exception:  # a model or an attention kernel that takes no such mask
        return False
    finally:
        model.train(training)
    if model.dtype in TOLERANCE:
        return bool((plain - found).abs().max() <= TOLERANCE[model.dtype])
    # Rounding of a narrow dtype is far below what a model that ignores the mask would get wrong.
    return bool((plain - found).abs().mean() <= ROUNDING * (plain - blind).abs().mean())
