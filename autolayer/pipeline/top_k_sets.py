"""Proposes the sets of layers that a race compares for `--top-k`.

The contribution of a set does not follow from those of its layers, because two neighbours may learn the same thing. The
proposed sets differ in how close their layers are, and short runs decide between them.
"""

from collections.abc import Sequence
from itertools import pairwise

from autolayer.probes.starting_rates import combined_rate
from autolayer.search.records import Candidate


def candidate_sets(singles: Sequence[Candidate], size: int, num_layers: int) -> list[Candidate]:
    """Proposes at most five different sets of `size` layers, or one of all `singles` if there are no more.

    These are the layers with the best predictions; the same with the weakest replaced by the runner-up; the best layers
    of which no two are neighbours; the best consecutive layers; and those in the middle, the rule that needs no probes.
    """
    ranked = sorted(singles, key=lambda single: (-single.predicted, -single.layers[0]))
    by_depth = sorted(singles, key=lambda single: single.layers)
    if size >= len(singles):
        return [_joined(by_depth)]
    apart: list[Candidate] = []
    for single in ranked:
        if len(apart) < size and all(abs(single.layers[0] - other.layers[0]) > 1 for other in apart):
            apart.append(single)
    blocks = [by_depth[start : start + size] for start in range(len(by_depth) - size + 1)]
    blocks = [block for block in blocks if all(b.layers[0] - a.layers[0] == 1 for a, b in pairwise(block))]
    near = sorted(singles, key=lambda single: (abs(single.layers[0] - num_layers // 2), -single.layers[0]))
    proposals = [ranked[:size], [*ranked[: size - 1], ranked[size]]]
    proposals += [apart] if len(apart) == size else []
    proposals += [max(blocks, key=lambda block: sum(single.predicted for single in block))] if blocks else []
    proposals.append(near[:size])
    return list({each.layers: each for each in map(_joined, proposals)}.values())


def _joined(singles: Sequence[Candidate]) -> Candidate:
    """Returns a candidate of several layers; its prediction is their mean, so that larger sets are not preferred."""
    return Candidate(
        layers=tuple(sorted(single.layers[0] for single in singles)),
        predicted=sum(single.predicted for single in singles) / len(singles),
        predicted_sd=max(single.predicted_sd for single in singles),
        learning_rate=combined_rate(single.learning_rate for single in singles),
    )
