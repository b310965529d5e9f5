"""RunPlan: the work, cost, time and memory of a run, as `--dry-run` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from autolayer.core.config import Config
from autolayer.core.costs import Cost
from autolayer.core.formatting import format_bytes, format_count, format_seconds
from autolayer.core.launch import num_processes
from autolayer.core.probe_plan import ProbePlan
from autolayer.pipeline.memory_fit import MemoryFit

if TYPE_CHECKING:
    from rich.console import RenderableType

BUDGETED = {"generated_tokens": "generated tokens", "layer_tokens": "layer-tokens"}
"""Fields of a cost that the budget limits, and their names in the plan."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The work and the cost of a planned run; `config` has every open field filled."""

    verb: Literal["pick", "train"] = "pick"
    config: Config
    num_layers: int
    candidates: tuple[int, ...]
    """Layers that are probed; those that are trained where the verb is train."""
    calibration_prompts: int
    probes: ProbePlan | None
    """None for `train` with a learning rate, which needs no probes."""
    eval_items: int
    eval_completions: int
    """Number of completions of each of the two models, base and trained."""
    eval_max_new_tokens: int
    full_run: Cost
    finding_budget: Cost
    stages: dict[str, Cost]
    """Cost of each stage of finding the layer; for the search, the largest cost."""
    lengths: Literal["allowed", "calibrated"]
    """Lengths of completions that the costs are for."""
    races: bool
    """False if the budget is too small for short runs, so that the probes decide alone and may spend all of it."""
    seconds: dict[str, float] | None
    """Estimated seconds of each stage, training and evaluation, in one process on this machine; None if unknown."""
    memory: MemoryFit
    host_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for --json."""
        return {**asdict(self), "config": self.config.model_dump(mode="json")}

    def render(self) -> RenderableType:
        """Returns a table for the terminal."""
        return plan_table([*self._work(), *self._needs()])

    def _work(self) -> Iterator[tuple[str, str]]:
        config, budget, finds = self.config, self.finding_budget, self.verb == "pick"
        layers = f"candidates: {len(self.candidates)}" if finds else f"trained: {config.layers}"
        yield "model", f"{config.model}: {self.num_layers} layers, {layers}"
        rate = "from the probes" if config.learning_rate is None else f"{config.learning_rate:g}"
        tokens = format_count(self.full_run.generated_tokens)
        yield "final run", f"{batches(config)}, at most {tokens} tokens" + ("" if finds else f"; learning rate {rate}")
        if finds:
            yield from self._shares(budget)
        yield "calibrate", f"{self.calibration_prompts} prompts x {config.group_size} completions"
        if self.probes is not None:
            yield from self._probing(self.probes)
        if finds:
            search = "the rest of the budget, by successive halving of short runs"
            if not self.races:
                search = "none: the budget pays for no short runs, the probes decide"
            yield "search", "none: there is one candidate" if len(self.candidates) == 1 else search
        yield (
            "evaluate",
            f"{self.eval_items} items of the eval split, {self.eval_completions} completions of at most "
            f"{self.eval_max_new_tokens} tokens, by base and trained",
        )

    def _shares(self, budget: Cost) -> Iterator[tuple[str, str]]:
        config = self.config
        work = f"{format_count(budget.generated_tokens)} generated tokens and {format_count(budget.layer_tokens)}"
        yield "finding", f"at most {config.budget:.0%} of one full run: {work} layer-tokens in all"
        worst = 0.0
        for kind, words in BUDGETED.items():
            shares = {name: getattr(cost, kind) / getattr(self.full_run, kind) for name, cost in self.stages.items()}
            parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            yield "", f"{sum(shares.values()):.1%} of its {words}: {parts} (completions as long as {self.lengths})"
            worst = max(worst, sum(shares.values()))
        if config.budget is not None and worst > config.budget:
            yield "note", f"finding costs {worst:.0%} of one full run, not the {config.budget:.0%} of --budget"

    def _probing(self, probes: ProbePlan) -> Iterator[tuple[str, str]]:
        folds = f"{self.config.probe.num_folds} folds of {probes.fold_prompts} prompts"
        parts = [folds] if probes.fold_prompts else []
        parts += [f"{probes.cutoff_pairs} pairs of prompts for cutoff"] if probes.cutoff_pairs else []
        yield "probe", "; ".join(parts) or "none: the budget pays for no probe"
        yield from (("note", note) for note in probes.notes)

    def _needs(self) -> Iterator[tuple[str, str]]:
        if self.seconds is not None:
            parts = ", ".join(f"{name} {format_seconds(value)}" for name, value in self.seconds.items() if value)
            others = "" if num_processes() < 2 else f" (the launcher has {num_processes()}, which share the work)"
            yield "time", f"in one process here{others}, uncertain by a factor of two or three: {parts}"
        if self.config.hours is not None:
            yield "deadline", f"the run ends after {self.config.hours:g} h (--hours); the same command resumes it"
        memory = self.memory
        sizes = {"memory, probing": memory.probing, "memory, training": memory.training, "host memory": self.host_bytes}
        for name, parts in sizes.items():
            if not parts:
                continue
            purposes = ", ".join(f"{purpose} {format_bytes(size)}" for purpose, size in parts.items())
            yield name, f"{format_bytes(sum(parts.values()))}: {purposes}"
        yield memory.device, f"{format_bytes(memory.total)}: {memory.sentence}"


def batches(config: Config) -> str:
    """Returns the steps of a full run and the size of each, in words."""
    return f"{config.steps} steps of {config.prompts_per_step} prompts x {config.group_size} completions"


def plan_table(rows: list[tuple[str, str]]) -> RenderableType:
    """Returns the rows of a plan, each a name and a text, as a table for the terminal."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table
