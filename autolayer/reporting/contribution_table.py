"""The contributions that `measure` found, as a table for the terminal and what it means."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolayer.reporting.contribution import ArmGain, Contribution


def contribution_table(found: Contribution, folder: Path) -> RenderableType:
    """Returns the table of the contributions in a run folder, and its sentences."""
    table = Table(box=None, pad_edge=False)
    for column in ("trained", "rate", *(f"gain, seed {seed}" for seed in found.seeds), "contribution"):
        table.add_column(column, justify="right", style="dim" if column == "rate" else None)

    def row(name: str, arm: ArmGain, value: str, style: str | None = None) -> None:
        table.add_row(name, f"{arm.learning_rate:g}", *(f"{gain:+.3f}" for gain in arm.gains), value, style=style)

    for layer, arm in found.layers.items():
        style = "bold" if layer in found.best_layers[:1] else None
        row(f"layer {layer}", arm, f"{arm.value:.2f} [{arm.low:.2f}, {arm.high:.2f}]", style)
    row("full", found.full, "1")
    full = found.full
    lines = [
        f"Contribution with {found.level:.0%} interval: the share of the full-parameter gain, {full.value:+.3f} "
        f"[{full.low:+.3f}, {full.high:+.3f}] from {found.base_score:.3f} on {found.num_items} items."
    ]
    if found.seed_sd is not None:
        lines.append(f"One run's gain differs between seeds by {found.seed_sd:.3f} (standard deviation).")
    if found.ceiling is not None:
        lines.append(f"A perfect prediction could correlate {found.ceiling:.2f} with these contributions.")
    first, *tied = found.best_layers or (None,)
    if tied:
        others = ", ".join(f"layer {layer}" for layer in tied)
        lines.append(f"Best: layer {first}; it cannot be told apart from {others}.")
    elif first is not None:
        lines.append(f"Best: layer {first}.")
    lines += [f"Note: {note}." for note in found.notes]
    title = Text(f"{found.model}, {found.task}, {found.algorithm}, {found.steps} steps")
    text = Text("\n".join([*lines, "", f"Every number: {folder / Contribution.FILE}"]))
    return Group(title, Padding(table, (0, 0, 1, 2)), text)
