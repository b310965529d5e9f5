"""The one reading of `eval`: what is asked of the model, and what its answers amount to.

Suffixes: _I items. An item is one row; of several completions of it the mean counts, so that one item stays one unit
of the paired comparison. With suites, the score is the unweighted mean over them of the mean over their items: an item
of suite s weighs 1 / (number of suites * items of s). Truncation and form are reported apart from correctness: a model
that is cut off or writes no answer is wrong for another reason than one that errs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autolayer.core.statistics import item_weights
from autolayer.reporting.results import SuiteScore
from autolayer.rollouts.types import Rollouts, request_seed
from autolayer.tasks.base import Row, Task
from autolayer.tasks.suites import MIN_ITEMS, Decoding


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What the model is asked, request by request, the completions of an item next to each other."""

    rows: list[Row]
    seeds: list[int]
    counts_I: tuple[int, ...]
    """Completions of each item."""
    suites_I: tuple[str, ...]
    decoding: Decoding | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one model made of the items of a split."""

    rewards_I: tuple[float, ...]
    truncated_I: tuple[float, ...]
    """Share of the item's completions that hit the token limit."""
    well_formed_I: tuple[float, ...] | None
    """Share of them that look like an answer; None where the task cannot say."""
    suites_I: tuple[str, ...]
    """The suite of each item; the task's name where it has none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the reward has logged of all completions."""

    @property
    def suites(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(dict.fromkeys(self.suites_I))

    @property
    def score(self) -> float:
        """Mean over the suites of the mean over their items."""
        return _mean([self.mean(self.rewards_I, suite) for suite in self.suites])

    def mean(self, values_I: Sequence[float], suite: str) -> float:
        """Mean over the items of a suite."""
        return _mean([value for value, name in zip(values_I, self.suites_I, strict=True) if name == suite])

    def well_formed(self, suite: str) -> float | None:
        """Share of a suite's completions that look like an answer."""
        return None if self.well_formed_I is None else self.mean(self.well_formed_I, suite)


def items(task: Task, split: str, num_items: int) -> list[int]:
    """The rows of a split that are read: the first ones, of several suites the first ones of each.

    Every suite then gives its share of `num_items`, but never fewer than its interval needs.
    """
    total = len(task.splits[split])
    if split != "eval" or task.suites is None or num_items >= total:
        return list(range(min(num_items, total)))
    quota = {suite: max(MIN_ITEMS, round(num_items * count / total)) for suite, count in Counter(task.suites).items()}
    taken: Counter[str] = Counter()
    chosen = []
    for index, suite in enumerate(task.suites):
        if taken[suite] < quota[suite]:
            taken[suite] += 1
            chosen.append(index)
    return chosen


def requests(task: Task, split: str, num_items: int, seed: int) -> Requests:
    """The completions to sample. Every item has seeds of its own, so more items or samples change no other's."""
    rows, seeds, counts, names = [], [], [], []
    for index in items(task, split, num_items):
        suite = task.suites[index] if split == "eval" and task.suites is not None else task.name
        count = task.samples.get(suite, 1) if split == "eval" else 1
        rows += [task.splits[split][index]] * count
        seeds += [request_seed(seed, split, index, *([sample] if sample else [])) for sample in range(count)]
        counts.append(count)
        names.append(suite)
    decoding = task.eval_decoding if split == "eval" else None
    return Requests(rows=rows, seeds=seeds, counts_I=tuple(counts), suites_I=tuple(names), decoding=decoding)


def evaluation(task: Task, asked: Requests, rollouts: Rollouts) -> Evaluation:
    """What the completions amount to."""
    starts = np.cumsum([0, *asked.counts_I[:-1]])

    def by_item(values: Sequence[float]) -> tuple[float, ...]:
        if set(asked.counts_I) == {1}:
            return tuple(map(float, values))
        return tuple(map(float, np.add.reduceat(np.array(values, dtype=float), starts) / np.array(asked.counts_I)))

    formed = task.is_well_formed
    return Evaluation(
        rewards_I=by_item(rollouts.rewards),
        truncated_I=by_item([not finished for finished in rollouts.finished]),
        well_formed_I=None if formed is None else by_item(rollouts.well_formed(formed)),
        suites_I=asked.suites_I,
        metrics=dict(rollouts.metrics),
    )


def suite_scores(task: Task, base: Evaluation, trained: Evaluation) -> dict[str, SuiteScore]:
    """Base and trained model by suite, in the order of the suites; a task without any is one suite of its name."""
    return {
        suite: SuiteScore(
            num_items=base.suites_I.count(suite),
            samples=task.samples.get(suite, 1),
            base_score=base.mean(base.rewards_I, suite),
            trained_score=trained.mean(trained.rewards_I, suite),
            base_truncated=base.mean(base.truncated_I, suite),
            trained_truncated=trained.mean(trained.truncated_I, suite),
            base_well_formed=base.well_formed(suite),
            trained_well_formed=trained.well_formed(suite),
        )
        for suite in base.suites
    }


def scale(task: Task, num_items: int) -> np.ndarray | None:
    """Factor by which each item of `eval` counts more than in a plain mean, shape (items,); None for no suites."""
    if task.suites is None:
        return None
    suites_I = [task.suites[index] for index in items(task, "eval", num_items)]
    return item_weights(suites_I) * len(suites_I)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
