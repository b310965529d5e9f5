"""Defines the evaluation of a task on several named sets (suites), with sampling parameters of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autolayer.core.errors import DataError

MIN_ITEMS = 2  # of a suite: a spread needs two


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Sampling parameters: top-k first, then top-p over the tokens that are left."""

    temperature: float
    top_p: float = 1.0
    """Above 0; 1 leaves every token."""
    top_k: int = 0
    """0 leaves every token."""
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise DataError(
                f"{self} cannot work: give a temperature above 0, a top_p above 0 and at most 1, a top_k of 0 (all) or "
                "more, and at least one new token."
            )


def check_suites(task: str, suites: Sequence[str] | None, samples: Mapping[str, int], num_rows: int) -> None:
    """Refuses suites (one for each row of `eval`) and samples (completions per item of a suite) that do not fit."""
    counts = Counter(suites or ())
    if suites is not None and len(suites) != num_rows:
        raise DataError(f"task '{task}' has {num_rows} rows in 'eval' and {len(suites)} suites: give one for each row.")
    if small := [name for name, count in counts.items() if count < MIN_ITEMS]:
        raise DataError(
            f"task '{task}': the suite {', '.join(small)} has a single item, so its spread is unknown: give "
            f"{MIN_ITEMS} or more, or leave it out."
        )
    for name, count in samples.items():
        if name not in counts or not isinstance(count, int) or count < 1:
            raise DataError(
                f"task '{task}': samples has {name!r}: {count!r}; give a whole number above 0 for any of the suites: "
                f"{', '.join(counts) or 'there are none'}."
            )
