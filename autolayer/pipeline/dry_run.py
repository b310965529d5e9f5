"""`--dry-run`: what a run would do and cost, from the model's configuration and the task's data. No weights are loaded.

Completion lengths are not known before calibration, so costs are given for completions that use all of
`max_new_tokens`: shares stay about right, absolute numbers are upper bounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autolayer.core.budget import (
    ProbePlan,
    ProbePrices,
    UnitCosts,
    calibration_cost,
    calibration_prompts,
    final_layers,
    finding_budget,
    full_run,
    pays_for_race,
    plan_probes,
)
from autolayer.core.config import Config
from autolayer.core.costs import Cost, CostModel
from autolayer.core.formatting import format_bytes, format_count, format_seconds
from autolayer.core.run_folder import CALIBRATION, RunFolder
from autolayer.models.layers import find_layers, head_ratio, parse_layers
from autolayer.models.loading import find_device, max_positions, meta_model, read_tokenizer
from autolayer.models.memory_estimate import gradient_bytes
from autolayer.pipeline.memory_fit import Room, make_room
from autolayer.pipeline.setup import check_names, early_checks, engine_name, resolve
from autolayer.pipeline.throughput import measure
from autolayer.rollouts.evaluation import requests
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.rollouts.types import encode_prompts
from autolayer.tasks import Task

if TYPE_CHECKING:
    from rich.console import RenderableType


KINDS = ("generated_tokens", "layer_tokens")
"""What the budget bounds (plan.py)."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The plan of a run."""

    config: Config
    """Resolved: every open field filled."""
    num_layers: int
    candidates: tuple[int, ...]
    calibration_prompts: int
    probes: ProbePlan
    evaluation: tuple[int, int, int]
    """Items of `eval`, completions for each of the two models, and tokens of a completion at the most."""
    full_run: Cost
    finding_budget: Cost
    stages: dict[str, Cost]
    """What each stage of finding the layer costs; of the search, what it may spend."""
    lengths: str
    """Where the lengths of completions come from."""
    races: bool
    """False if the budget pays for no race, so that the probes may spend all of it and decide."""
    seconds: dict[str, float] | None
    """Of each stage, the training and the evaluation, in one process here, roughly; None if unknown."""
    room: Room
    host_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return asdict(self)

    def render(self) -> RenderableType:
        """A table for the terminal."""
        from rich.table import Table

        config, table = self.config, Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column()
        table.add_row("model", f"{config.model}: {self.num_layers} layers, {len(self.candidates)} candidates")
        table.add_row(
            "final run",
            f"{config.steps} steps of {config.prompts_per_step} prompts x {config.group_size} completions, at most "
            f"{format_count(self.full_run.generated_tokens)} tokens",
        )
        table.add_row(
            "finding",
            f"at most {config.budget:.0%} of one full run: {format_count(self.finding_budget.generated_tokens)} "
            f"generated tokens and {format_count(self.finding_budget.layer_tokens)} layer-tokens in all",
        )
        for kind in KINDS:
            shares = {name: getattr(c, kind) / getattr(self.full_run, kind) for name, c in self.stages.items()}
            parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            name = kind.replace("generated_", "generated ").replace("_", "-")
            table.add_row("", f"{sum(shares.values()):.1%} of its {name}: {parts} ({self.lengths})")
        table.add_row("calibrate", f"{self.calibration_prompts} prompts x {config.group_size} completions")
        sizes = self.probes
        table.add_row(
            "probe",
            f"{config.probe.num_folds} folds of {sizes.fold_prompts} prompts; line search on "
            f"{sizes.line_search_prompts}; bursts of {sizes.burst_steps} steps x {sizes.burst_prompts} prompts",
        )
        rest = "the rest of the budget, by successive halving of short runs"
        table.add_row("search", rest if self.races else "none: the budget pays for no short runs, the probes decide")
        if self.seconds is not None:
            parts = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in self.seconds.items() if seconds)
            table.add_row("time", f"in one process here, to a factor of two or three: {parts}")
        items, completions, tokens = self.evaluation
        table.add_row(
            "evaluate",
            f"{items} items of the eval split, {completions} completions of at most {tokens} tokens, by base and "
            "trained",
        )
        room = self.room
        for where, amounts in (
            ("memory, probing", room.probing), ("memory, training", room.training), ("host memory", self.host_bytes),
        ):  # fmt: skip
            parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in amounts.items())
            table.add_row(where, f"{format_bytes(sum(amounts.values()))}: {parts}")
        table.add_row(room.device, f"{format_bytes(room.total)}: {room.says}")
        dear = max(getattr(sum(self.stages.values(), Cost()), k) / getattr(self.full_run, k) for k in KINDS)
        if config.budget is not None and dear > config.budget:
            table.add_row("note", f"finding costs {dear:.0%} of one full run, not the {config.budget:.0%} of --budget")
        for note in sizes.notes:
            table.add_row("note", note)
        return table


def dry_run(config: Config, *, timed: bool = True) -> DryRun:
    """Works out the plan.

    Args:
        config: Of `pick`.
        timed: Whether a few blocks are timed, for the time it takes.

    Raises:
        AutolayerError: What would also stop the run itself: unknown names, unusable data, layers that do not exist.
    """
    check_names(config)
    task = early_checks(config, "pick")
    model, tokenizer = meta_model(config.model), read_tokenizer(config.model)
    task = apply_length_limits(config, task, tokenizer, max_positions(model.config))
    config = resolve(config, task)
    asked = requests(task, "eval", config.num_eval or 0, config.seed)
    num_layers = len(find_layers(model))
    candidates = parse_layers(config.layers, num_layers, config.model)
    assert candidates != "full"
    answer = task.max_new_tokens * task.max_turns
    some = encode_prompts(tokenizer, task.splits["probe"][:64], dict(task.chat_template_kwargs))
    found = RunFolder(config.out).read(CALIBRATION) if config.out else None
    tokens = expected_tokens(task, sum(map(len, some)) / len(some))
    measured = {name: float(v) for name in tokens if isinstance(v := (found or {}).get(f"mean_{name}"), int | float)}
    if calibrated := len(measured) == len(tokens):
        tokens = measured
    units = UnitCosts(
        costs=CostModel(num_layers=num_layers, head_ratio=head_ratio(model)),
        group_size=config.group_size,
        multiple=1,
        **tokens,
    )
    budget = finding_budget(config, units, candidates)
    prompts, sizes = calibration_prompts(config), plan_probes(config, units, candidates, budget)
    stages = {
        "calibrate": calibration_cost(config, units),
        "probe": ProbePrices(config, units, candidates).all(sizes, sampled=prompts),
    }
    spent = sum(stages.values(), Cost())
    races = pays_for_race(config, units, candidates, budget - spent)
    stages["search"] = budget - spent if races else Cost()
    trained = final_layers(config, candidates)
    full = full_run(config, units, trained)
    width = task.max_context or round(max(map(len, some))) + answer
    device = find_device(config.device)
    engine = engine_name(config, device.type)
    assert config.prompts_per_step is not None
    pace = measure(
        model, tokenizer, units.costs, device, width=width, batch=config.prompts_per_step * config.group_size,
        vllm=engine == "vllm",
    ) if timed and engine != "server" else None  # fmt: skip
    times = None
    if pace is not None:
        most = (asked.decoding or task).max_new_tokens * task.max_turns
        evaluated = units.costs.generate(tokens["prompt_tokens"], most) * (2 * len(asked.rows))
        works = {**stages, "train": full, "evaluate": evaluated}
        times = {name: pace.seconds(cost, units.costs) for name, cost in works.items()}
    return DryRun(
        config=config,
        num_layers=num_layers,
        candidates=candidates,
        calibration_prompts=prompts,
        probes=sizes,
        evaluation=(len(asked.counts_I), len(asked.rows), (asked.decoding or task).max_new_tokens),
        full_run=full,
        finding_budget=budget,
        stages=stages,
        lengths="completions as long as " + ("calibrated" if calibrated else "allowed"),
        races=races,
        seconds=times,
        room=make_room(config, model, candidates, width),
        host_bytes={"gradients of the shared batch": gradient_bytes(model, candidates, config.probe.num_folds)},
    )


def expected_tokens(task: Task, prompt: float) -> dict[str, float]:
    """Of completions that use all their tokens, and episodes all their turns, with observations as long as actions."""
    action, turns = task.max_new_tokens, task.max_turns
    return {
        "prompt_tokens": prompt + action * (turns - 1),
        "completion_tokens": action * turns,
        "prefill_tokens": prompt * turns + action * turns * (turns - 1),
    }
