"""The plan of `measure`: learning rates, steps of every training, and the totals that `--dry-run` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autolayer.core.budget import BUDGET
from autolayer.core.config import Config
from autolayer.core.formatting import format_count
from autolayer.pipeline.dry_run import plan_run
from autolayer.pipeline.run_plan import RunPlan, batches, plan_table
from autolayer.probes.probe_report import ProbeReport, joint_rate

if TYPE_CHECKING:
    from rich.console import RenderableType

FINALISTS = 3
"""Number of rates that continue from a quarter of the steps to all steps. With two, a layer whose gain comes late lost
its best rate to evaluation noise (LayerBench, gap)."""
RATE_STEP, MIN_RATES, MAX_RATES = 2.0, 3, 6
"""Factor between neighbouring rates of the default grid, larger where more than MAX_RATES would be needed."""
GRID_MARGIN = 2.0
"""The default grid goes from the full-parameter starting rate divided by this to a layer's largest times this."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Number and length of all trainings."""

    num_arms: int
    """The layers, and one arm for all parameters."""
    num_rates: int
    quarter: int
    steps: int
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, config: Config, *, num_arms: int, num_rates: int) -> Schedule:
        """Returns the schedule of a configuration."""
        assert config.steps is not None
        return cls(
            num_arms=num_arms,
            num_rates=num_rates,
            quarter=-(-config.steps // 4),
            steps=config.steps,
            seeds=tuple(range(config.seed, config.seed + config.measure.num_seeds)),
        )

    @property
    def chooses(self) -> bool:
        """True if there are several rates to choose from."""
        return self.num_rates > 1

    @property
    def inherited(self) -> int:
        """Steps of the first seed's full run that were done while choosing the rate."""
        return self.steps if self.chooses else 0

    @property
    def total(self) -> int:
        """Steps of all trainings together, if none of them diverges."""
        finals = min(FINALISTS, self.num_rates) * (self.steps - self.quarter)
        choosing = self.num_rates * self.quarter + finals if self.chooses else 0
        return self.num_arms * (choosing - self.inherited + len(self.seeds) * self.steps)


def rate_grid(config: Config, probed: ProbeReport, num_layers: int) -> tuple[float, ...]:
    """Returns the learning rates that every arm is tried at, full-parameter RL included, so that the choice is fair.

    Without --rates or --learning-rate they go from below the full-parameter starting rate to above a layer's largest.
    """
    if config.learning_rate is not None:
        return (config.learning_rate,)
    if config.measure.rates is not None:
        return config.measure.rates
    known = [rate for rate in probed.learning_rates if rate is not None]
    # The layers that were not probed would move the policy as much as those that were.
    low = joint_rate(probed) * (len(known) / num_layers) ** 0.5
    return spread(low / GRID_MARGIN, GRID_MARGIN * max(known))


def spread(low: float, high: float) -> tuple[float, ...]:
    """Returns a geometric grid from about `low` to about `high`, with three digits."""
    wanted = round(math.log(high / low) / math.log(RATE_STEP)) + 1
    number = min(max(wanted, MIN_RATES), MAX_RATES)
    factor = RATE_STEP if wanted <= MAX_RATES else (high / low) ** (1 / (number - 1))
    return tuple(float(f"{low * factor**i:.3g}") for i in range(number))


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """The plan that `autolayer measure --dry-run` prints."""

    run: RunPlan
    schedule: Schedule
    rates: tuple[float, ...] | None
    """None if the probes will make them, at most `schedule.num_rates`."""

    @property
    def num_full_runs(self) -> float:
        """All steps, in full runs of one arm."""
        return self.schedule.total / self.schedule.steps

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for --json."""
        plain = {
            "config": self.run.config.model_dump(mode="json"),
            "layers": list(self.run.candidates),
            "rates": self.rates,
        }
        return {**plain, **asdict(self.schedule), "total_steps": self.schedule.total, "full_runs": self.num_full_runs}

    def render(self) -> RenderableType:
        """Returns a table for the terminal."""
        return plan_table([*self._rows()])

    def _rows(self) -> Iterator[tuple[str, str]]:
        config, schedule = self.run.config, self.schedule
        yield "model", f"{config.model}: {self.run.num_layers} layers, {len(self.run.candidates)} measured"
        rates = f"at most {schedule.num_rates}, made from the probes"
        yield "rates", rates if self.rates is None else ", ".join(f"{rate:g}" for rate in self.rates)
        if schedule.chooses:
            runs = f"{schedule.num_arms} arms x {schedule.num_rates} runs of {schedule.quarter} steps"
            finalists = min(FINALISTS, schedule.num_rates)
            yield "choosing", f"{runs}; the best {finalists} of each to step {schedule.steps}"
        yield "full runs", f"{schedule.num_arms} arms x {len(schedule.seeds)} seeds, {batches(config)}"
        yield "evaluate", f"{config.num_eval} items of the eval split, every run and the base"
        tokens = format_count(self.run.full_run.generated_tokens * self.num_full_runs)
        full_runs = f"as many as {self.num_full_runs:.1f} full runs, at most {tokens} generated tokens"
        yield "in all", f"{schedule.total} steps: {full_runs}"


def plan_measurement(config: Config) -> MeasurePlan:
    """Plans a measurement from the model's configuration alone, and raises what would stop the measurement itself."""
    run = plan_run(config.replace(budget=BUDGET if config.budget is None else config.budget), timed=False)
    rates = (config.learning_rate,) if config.learning_rate is not None else config.measure.rates
    schedule = Schedule.of(run.config, num_arms=len(run.candidates) + 1, num_rates=len(rates) if rates else MAX_RATES)
    return MeasurePlan(run=run, schedule=schedule, rates=rates)
