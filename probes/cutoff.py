"""Probe `cutoff`: how much of what the base reads of a prompt it still has to read in a layer or above."""

from collections.abc import Callable

import numpy as np

from autolayer.core.probe_plan import CUTOFF_DEPTHS
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.exchange import Exchange, NoSingleState, make_pairs
from autolayer.rollouts.rollouts import Rollouts

# N pairs of prompts.

FLAT = 0.05
"""Difference of two neighbouring depths below which nothing between them is measured."""
MIN_PAIRS = 2
MIN_MARGIN = 2.0
"""Standard errors by which the exchange must move the answers at the first block; else the probe does not apply."""


class Cutoff(Probe):
    """Scores a layer by the share of what an answer takes from its prompt that it takes in this layer or above.

    Two prompts A and B have completions a and b of the base's own. The hidden state that enters block l is exchanged
    between them at all positions before those that predict the completion, so the blocks below l read one prompt and
    the others the other one. Behind the cutoff, the score is 0: nobody reads what a layer writes at those positions.

    Formula: with D(X) = log p(a | X) - log p(b | X), and M_l the sum over pairs of D(A) - D(B) with the exchange at l,

        score_l = (M - M_l) / (M - M_0),   M without any exchange

    Shape (candidates,), 1 at block 0, about between 0 and 1 above it. Prompts of different length are aligned at their
    end; the first position, to which attention often goes for want of anything better, keeps its own state. A piece of
    a long completion, or of one turn, is predicted from everything before it.
    Source: activation patching of the residual stream (arXiv 2609.36585).
    Cost: two forward passes and six partial ones over both prompts of each pair, each with two answers; no gradient and
    no reward.
    Measured: on SmolLM2-135M and small sums it is .98 at block 10, .62 at 20, .09 at 22 and 0 from 25 on; relative
    contributions at 20, 25 and 29 are .75, .05 and .09 (examples/RESULTS.md).
    Known to fail: it shows what the base uses, not what a layer can learn. A layer behind the cutoff can still sharpen
    an answer that is there already. It does not apply, and is left out, where the base's completions do not depend on
    the prompt, or its blocks take several states for each position.
    """

    needs_gradients = False

    def score(self, context: ProbeContext) -> Scores | None:
        """Returns the scores by the class's formula."""
        if not context.plan.cutoff_pairs:
            return None
        rollouts = Rollouts.joined([fold.rollouts for fold in context.folds], context.folds[0].rollouts.group_size)
        pairs = make_pairs(rollouts, context.plan.cutoff_pairs, context.seed)
        if len(pairs) < MIN_PAIRS:
            return _left_out(context, f"{len(pairs)} pairs of prompts have different completions")
        exchange = Exchange(context.bench, pairs)
        whole_N = exchange.margins(None).numpy()
        try:
            all_N = whole_N - exchange.margins(0).numpy()
        except NoSingleState:
            return _left_out(context, "the blocks of this model take more than one hidden state for each position")
        if not all_N.mean() > MIN_MARGIN * all_N.std(ddof=1) / len(all_N) ** 0.5:
            return _left_out(context, "an exchange of prompts does not move the base's completions")
        found = bisect(lambda block: ratio(whole_N - exchange.margins(block).numpy(), all_N), len(context.bench.layers))
        blocks, values = zip(*sorted(found.items()), strict=True)
        scores, errors = np.array(values).T
        return Scores(
            scores_L=np.interp(context.layers, blocks, scores), errors_L=np.interp(context.layers, blocks, errors)
        )


def _left_out(context: ProbeContext, reason: str) -> None:
    context.notes.append(f"cutoff left out: {reason}")


def ratio(moved_N: np.ndarray, all_N: np.ndarray) -> tuple[float, float]:
    """Returns the ratio of two sums over pairs, and its standard error (delta method)."""
    share = moved_N.sum() / all_N.sum()
    count = len(all_N)
    error = float(np.square(moved_N - share * all_N).sum() * count / (count - 1)) ** 0.5 / abs(all_N.sum())
    return float(share), error


def bisect(measure: Callable[[int], tuple[float, float]], num_blocks: int) -> dict[int, tuple[float, float]]:
    """Measures a curve that starts at 1 at the last and at some other blocks, always where it falls most."""
    found = {0: (1.0, 0.0), num_blocks - 1: measure(num_blocks - 1)}
    while len(found) < CUTOFF_DEPTHS:
        known = sorted(found)
        gaps = [(left, right) for left, right in zip(known, known[1:], strict=False) if right - left > 1]
        falls = {gap: abs(found[gap[0]][0] - found[gap[1]][0]) for gap in gaps}
        if not falls or max(falls.values()) < FLAT:
            break
        left, right = max(falls, key=lambda gap: falls[gap])
        found[(left + right) // 2] = measure((left + right) // 2)
    return found
