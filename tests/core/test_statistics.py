"""Intervals cover what they claim to cover, by simulation."""

import numpy as np
import pytest
from scipy import stats as reference

from autolayer.core.statistics import paired_interval


@pytest.mark.parametrize(("level", "num_items"), [(0.95, 8), (0.8, 30), (0.95, 100)])
def test_intervals_cover_the_true_gain_as_often_as_they_say(level: float, num_items: int) -> None:
    generator, trials, gain = np.random.default_rng(0), 2000, 0.3
    covered = 0
    for _ in range(trials):
        difficulty = generator.normal(0, 5, num_items)  # cancels
        before = difficulty + generator.normal(0, 1, num_items)
        after = difficulty + gain + generator.normal(0, 1, num_items)
        interval = paired_interval(list(after), list(before), level)
        covered += interval.low <= gain <= interval.high
    assert abs(covered / trials - level) < 4 * (level * (1 - level) / trials) ** 0.5


def test_pairing_cancels_the_difficulty_of_the_items() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.normal(0, 5, 50)
    after = difficulty + 0.3 + generator.normal(0, 0.1, 50)
    interval = paired_interval(list(after), list(difficulty))
    assert 0 < interval.low < 0.3 < interval.high < 0.4


def test_it_is_the_one_sample_t_interval_of_the_differences() -> None:
    after, before = [1.0, 0.0, 1.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0, 0.25]
    expected = reference.ttest_1samp(np.array(after) - before, 0).confidence_interval(0.9)
    interval = paired_interval(after, before, 0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert (interval.value, interval.level, interval.num_items) == (pytest.approx(0.45), 0.9, 5)


def test_equal_differences_give_an_interval_of_no_width() -> None:
    interval = paired_interval([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert interval.low == interval.value == interval.high == 0.5


@pytest.mark.parametrize(("after", "before"), [([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([1.0], [1.0, 2.0])])
def test_fewer_than_two_pairs_or_unequal_lengths_are_refused(after: list[float], before: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more pairs"):
        paired_interval(after, before)
