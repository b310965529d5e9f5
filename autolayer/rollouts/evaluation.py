"""Evaluation of a model on a split: which completions to sample, and how their rewards become a score.

Suffix _I: items. An item is one row. Its completions count by their mean, so that it stays one unit of the paired
comparison. With suites, an item of suite s weighs 1 / (number of suites * items of s). Truncation and format are
reported apart from correctness, because a completion without an answer fails for another reason than a wrong one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autolayer.reporting.results import SuiteScore
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks.base import Row, Task
from autolayer.tasks.suites import MIN_ITEMS, Decoding


@dataclass(frozen=True, kw_only=True)
class EvaluationRequests:
    """The completions to sample in an evaluation, one request each; the `counts_I` requests of an item are adjacent."""

    rows: list[Row]
    seeds: list[int]
    counts_I: tuple[int, ...]
    suites_I: tuple[str, ...]
    decoding: Decoding | None
    """Decoding settings of `eval`; None for the task's sampling settings."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of one model on the items of a split."""

    rewards_I: tuple[float, ...]
    truncated_I: tuple[float, ...]
    """Share of each item's completions that hit the token limit."""
    well_formed_I: tuple[float, ...] | None
    """Share of each item's completions that are well formed; None if the task does not define it."""
    suites_I: tuple[str, ...]
    """The suite of each item; the task's name if it has no suites."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def suites(self) -> tuple[str, ...]:
        """The names of the suites, in order."""
        return tuple(dict.fromkeys(self.suites_I))

    @property
    def score(self) -> float:
        """Mean over the suites of the mean reward of their items."""
        return _mean([self.mean(self.rewards_I, suite) for suite in self.suites])

    def mean(self, values_I: Sequence[float], suite: str) -> float:
        """Returns the mean of `values_I` over the items of a suite."""
        return _mean([value for value, name in zip(values_I, self.suites_I, strict=True) if name == suite])

    def well_formed(self, suite: str) -> float | None:
        """Returns the share of a suite's completions that are well formed; None if the task does not define it."""
        return None if self.well_formed_I is None else self.mean(self.well_formed_I, suite)


def item_indices(task: Task, split: str, num_items: int) -> list[int]:
    """Returns the indices of the rows that an evaluation reads: the first rows of the split.

    If `eval` has suites, they are the first of each suite, in proportion to its size but at least `MIN_ITEMS`, which
    its confidence interval needs; there may then be more than `num_items`.
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


def evaluation_requests(task: Task, split: str, num_items: int, seed: int) -> EvaluationRequests:
    """Returns the completions to sample; only `eval` has suites, several samples per item and its own decoding.

    Each item has its own seeds, so that adding items or samples does not change the seeds of the others.
    """
    rows, seeds, counts, names = [], [], [], []
    for index in item_indices(task, split, num_items):
        suite = task.suites[index] if split == "eval" and task.suites is not None else task.name
        count = task.samples.get(suite, 1) if split == "eval" else 1
        rows += [task.splits[split][index]] * count
        seeds += [request_seed(seed, split, index, *([sample] if sample else [])) for sample in range(count)]
        counts.append(count)
        names.append(suite)
    decoding = task.eval_decoding if split == "eval" else None
    return EvaluationRequests(rows=rows, seeds=seeds, counts_I=tuple(counts), suites_I=tuple(names), decoding=decoding)


def average_by_item(task: Task, requests: EvaluationRequests, rollouts: Rollouts) -> Evaluation:
    """Returns the results per item of rollouts with one completion per request, in the same order."""
    counts_I = np.array(requests.counts_I)
    starts_I = np.cumsum(counts_I) - counts_I

    def by_item(values: Sequence[float]) -> tuple[float, ...]:
        return tuple((np.add.reduceat(np.array(values, dtype=float), starts_I) / counts_I).tolist())

    formed = task.is_well_formed
    return Evaluation(
        rewards_I=by_item(rollouts.rewards),
        truncated_I=by_item([not finished for finished in rollouts.finished]),
        well_formed_I=None if formed is None else by_item(rollouts.well_formed(formed)),
        suites_I=requests.suites_I,
        metrics=rollouts.logged,
    )


def suite_scores(task: Task, base: Evaluation, trained: Evaluation) -> dict[str, SuiteScore]:
    """Returns both models' scores on the same items by suite; a task without suites is one suite with its name."""
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


def relative_weights(task: Task, num_items: int) -> np.ndarray:
    """Returns each item's weight in the score relative to a plain mean over `eval`, shape (items,)."""
    names = evaluation_requests(task, "eval", num_items, seed=0).suites_I
    count = Counter(names)
    return np.array([len(names) / (len(count) * count[name]) for name in names])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
