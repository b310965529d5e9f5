"""RunPlan: the work, cost, time and memory of a run, as `--dry-run` prints them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autolayer.core.config import Config
from autolayer.core.costs import Cost
from autolayer.core.formatting import format_bytes, format_count, format_seconds
from autolayer.core.probe_plan import ProbePlan
from autolayer.pipeline.memory_fit import MemoryFit

if TYPE_CHECKING:
    from rich.console import RenderableType

BUDGETED = {"generated_tokens": "generated tokens", "layer_tokens": "layer-tokens"}
"""Fields of a cost that the budget limits, and their names in the plan."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Size of the evaluation of the base and the trained model."""

    num_items: int
    num_completions: int
    """Number of completions of each of the two models."""
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The work and the cost of a planned run."""

    config: Config
    """The settings with every open field filled."""
    num_layers: int
    candidates: tuple[int, ...]
    calibration_prompts: int
    probes: ProbePlan
    evaluation: EvaluationPlan
    full_run: Cost
    """Cost of the final training."""
    finding_budget: Cost
    """Largest cost of finding the layer."""
    stages: dict[str, Cost]
    """Cost of each stage of finding the layer; for the search, the largest cost."""
    lengths: str
    """Origin of the lengths of completions."""
    races: bool
    """False if the budget is too small for short runs, so that the probes decide alone and may spend all of it."""
    seconds: dict[str, float] | None
    """Estimated seconds of each stage, training and evaluation, in one process on this machine; None if unknown."""
    memory: MemoryFit
    host_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for --json."""
        return {**asdict(self), "config": self.config.model_dump()}

    def render(self) -> RenderableType:
        """Returns a table for the terminal."""
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column()
        for name, text in (*self._work(), *self._needs(), *self._notes()):
            table.add_row(name, text)
        return table

    def _work(self) -> list[tuple[str, str]]:
        config, probes, evaluation = self.config, self.probes, self.evaluation
        tokens, work = self.finding_budget.generated_tokens, self.finding_budget.layer_tokens
        rows = [
            ("model", f"{config.model}: {self.num_layers} layers, {len(self.candidates)} candidates"),
            (
                "final run",
                f"{config.steps} steps of {config.prompts_per_step} prompts x {config.group_size} completions, at "
                f"most {format_count(self.full_run.generated_tokens)} tokens",
            ),
            (
                "finding",
                f"at most {config.budget:.0%} of one full run: {format_count(tokens)} generated tokens and "
                f"{format_count(work)} layer-tokens in all",
            ),
        ]
        for kind, words in BUDGETED.items():
            shares = {name: self._share(cost, kind) for name, cost in self.stages.items()}
            parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            rows.append(("", f"{sum(shares.values()):.1%} of its {words}: {parts} ({self.lengths})"))
        return [
            *rows,
            ("calibrate", f"{self.calibration_prompts} prompts x {config.group_size} completions"),
            (
                "probe",
                f"{config.probe.num_folds} folds of {probes.fold_prompts} prompts; "
                f"bursts of {probes.burst_steps} steps x {probes.burst_prompts} prompts",
            ),
            (
                "search",
                "the rest of the budget, by successive halving of short runs"
                if self.races
                else "none: the budget pays for no short runs, the probes decide",
            ),
            (
                "evaluate",
                f"{evaluation.num_items} items of the eval split, {evaluation.num_completions} completions of at most "
                f"{evaluation.max_new_tokens} tokens, by base and trained",
            ),
        ]

    def _needs(self) -> list[tuple[str, str]]:
        rows = []
        if self.seconds is not None:
            parts = ", ".join(f"{name} {format_seconds(value)}" for name, value in self.seconds.items() if value)
            rows.append(("time", f"in one process here, uncertain by a factor of two or three: {parts}"))
        memory = self.memory
        for name, sizes in (
            ("memory, probing", memory.probing), ("memory, training", memory.training), ("host memory", self.host_bytes)
        ):  # fmt: skip
            parts = ", ".join(f"{purpose} {format_bytes(size)}" for purpose, size in sizes.items())
            rows.append((name, f"{format_bytes(sum(sizes.values()))}: {parts}"))
        return [*rows, (memory.device, f"{format_bytes(memory.total)}: {memory.sentence}")]

    def _notes(self) -> list[tuple[str, str]]:
        found, budget = sum(self.stages.values(), Cost()), self.config.budget
        share = max(self._share(found, kind) for kind in BUDGETED)
        notes = list(self.probes.notes)
        if budget is not None and share > budget:
            notes.insert(0, f"finding costs {share:.0%} of one full run, not the {budget:.0%} of --budget")
        return [("note", note) for note in notes]

    def _share(self, cost: Cost, kind: str) -> float:
        return getattr(cost, kind) / getattr(self.full_run, kind)
