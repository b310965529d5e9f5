"""Numbers as text."""

import pytest

from autolayer.core.formatting import format_bytes, format_count, format_seconds


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (950, "950"), (12345, "12.3k"), (2.3e7, "23.0M"), (4e12, "4.0T")]
)
def test_counts(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (1.5e11, "150.0 GB")])
def test_bytes(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
