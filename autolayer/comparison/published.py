"""The curves that ship with the package (data/published), by name. No torch.

Each is published, or was measured for this project on a pretrained language model; README.md beside them says which.
"""

import csv
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from autolayer.comparison.curves import PUBLISHED_PREFIX, Curve
from autolayer.core.errors import unknown

DATA = Path(__file__).parent.parent / "data" / "published"
BENCHMARKS = ("math500", "gsm8k", "olympiad", "amc")
"""Columns of the table of scores whose unweighted mean is the score S (arXiv 2607.01232)."""


@dataclass(frozen=True, kw_only=True)
class PublishedCurve:
    """One entry of curves.toml: what a source says about the contribution of a model's layers."""

    model: str
    family: str
    """Models that share architecture and pretraining."""
    num_layers: int
    task: str
    algorithm: str
    source: str
    note: str
    best: tuple[int, ...] = ()
    """The best layers in order, where the source names some."""
    worst: tuple[int, ...] = ()
    """The worst layers in order, the worst one first."""
    contribution: dict[int, float] = field(default_factory=dict)
    table: str | None = None
    """A file of scores beside curves.toml, from which the contribution is computed."""

    def values(self) -> dict[int, float]:
        """Returns the contribution of every layer of which it is known."""
        if self.table is None:
            return dict(sorted(self.contribution.items()))
        with (DATA / self.table).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        score = {row["setting"]: sum(float(row[column]) for column in BENCHMARKS) / len(BENCHMARKS) for row in rows}
        base, full = score["Base"], score["Full"]
        return {int(row["layer"]): (score[row["setting"]] - base) / (full - base) for row in rows if row["layer"]}


@cache
def published_curves() -> dict[str, PublishedCurve]:
    """Returns every entry by its name."""
    entries = tomllib.loads((DATA / "curves.toml").read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, PublishedCurve]).validate_python(entries)


def published(name: str) -> Curve:
    """Returns a published curve, by its name with or without 'published:' in front."""
    name = name.removeprefix(PUBLISHED_PREFIX)
    if name not in published_curves():
        known = [PUBLISHED_PREFIX + known for known in published_curves()]
        raise unknown("published curve", PUBLISHED_PREFIX + name, known)
    found = published_curves()[name]
    return Curve(
        source=PUBLISHED_PREFIX + name,
        setting=f"{found.model}, {found.task}, {found.algorithm}",
        num_layers=found.num_layers,
        values=found.values(),
        best=found.best,
        worst=found.worst,
        is_measured=True,
        notes=(found.note, f"source: {found.source}"),
    )
