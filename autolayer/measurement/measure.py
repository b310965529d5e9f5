"""`measure`: trains every layer, and all parameters, on several seeds, and reports each layer's contribution.

C(l) = (S_l - S_base) / (S_full - S_base). Every arm is tried at the same learning rates in short runs of the first
seed, continues at its best one, and is scored item by item against the base model. measured.json keeps the rewards of
every finished training, so that nothing is done twice; `estimate` turns them into contributions.
"""

import importlib.metadata
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from autolayer.core.config import Config, Options, config_of, with_options
from autolayer.core.costs import Cost
from autolayer.core.errors import ConfigError, DataError
from autolayer.core.layer_set import Layers
from autolayer.core.progress import Progress
from autolayer.core.statistics import Interval
from autolayer.measurement.estimate import ESTIMATOR, NUM_BOOTSTRAP_DRAWS, estimate
from autolayer.measurement.schedule import Schedule, rate_grid
from autolayer.measurement.training_runs import MEASURED_FILE, TrainingRuns, name_of
from autolayer.pipeline.calibrate_stage import calibrate_stage
from autolayer.pipeline.probe_stage import probe_stage
from autolayer.pipeline.result_builder import PACKAGES
from autolayer.pipeline.result_notes import run_notes
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.setup import setup
from autolayer.probes.probe_report import ProbeReport
from autolayer.reporting.contribution import CONTRIBUTION_FILE, ArmGain, Contribution
from autolayer.rollouts.evaluation import relative_weights

CONFIDENCE_LEVEL = 0.95


@with_options
def measure(
    config: Config | None = None,
    *,
    num_seeds: int | None = None,
    rates: str | Sequence[float] | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Contribution:
    """Measures the contribution of every layer (or of `layers`), and the full-parameter gain it is a share of.

    Args:
        config: The settings of the run.
        num_seeds: Training seeds of every arm; default 3.
        rates: Learning rates that every arm is tried at, such as [1e-4, 3e-4, 1e-3]; default: a grid made from the
            probes.
        progress: Shows progress; default: nothing is shown.
        options: The settings as keyword arguments instead of a `config`.

    Returns:
        What was measured. The run folder holds it as contribution.json; the same call resumes.

    Raises:
        AutolayerError: As `pick`; or full-parameter RL gained nothing that a contribution could be a share of.

    Example:
        found = autolayer.measure(model="tiny", task="math:arith", layers="0,3-5", num_seeds=2)
        print(found.values, found.full.value)
    """
    table = {name: value for name, value in (("num_seeds", num_seeds), ("rates", rates)) if value is not None}
    given = {**options, **table} if config is not None else {**options, **({"measure": table} if table else {})}
    with setup(config_of(config, given), progress, verb="measure") as run:
        if done := finished(run):
            return done
        if (run.config.num_eval or 0) < 2:
            run.folder.abandon()
            raise ConfigError(f"--num-eval {run.config.num_eval} cannot work: an interval needs at least 2 items.")

        calibration = calibrate_stage(run)
        probes = probe_stage(run, calibration, before_race=False)
        probed = probes.report

        grid = rate_grid(run.config, probed, len(run.bench.layers))
        arms: list[Layers] = [*((layer,) for layer in movable(probed)), "full"]
        schedule = Schedule.of(run.config, num_arms=len(arms), num_rates=len(grid))
        with run.progress.stage("measure", schedule.total) as bar:
            trials = TrainingRuns(run, grid, schedule, bar)
            base_I = trials.base("eval")
            chosen, rewards_A_S_I = zip(*map(trials.run, arms), strict=True)
            bar.advance(0, f"{len(arms)} arms, {len(schedule.seeds)} seeds")

        scale_I = relative_weights(run.bench.task, run.config.num_eval or 0)  # suites count equally, of any size
        found = summarize(run, probed, grid, chosen, np.array(base_I) * scale_I, np.array(rewards_A_S_I) * scale_I)
        notes = (*run_notes(run), *measurement_notes(probed, grid, arms, chosen, schedule), *trials.failures())
        costs = {"calibrate": calibration.cost, "probe": probes.cost, **trials.cost}
        return write_contribution(run, schedule.seeds, found, notes, costs)


def finished(run: RunContext) -> Contribution | None:
    """Returns the result of an earlier run of the same command, or None."""
    found = run.folder.read(CONTRIBUTION_FILE)
    return None if found is None else Contribution.from_dict(found, run.folder / CONTRIBUTION_FILE)


def movable(probed: ProbeReport) -> tuple[int, ...]:
    """Returns the layers that move the policy at all."""
    return tuple(layer for layer, rate in _rates(probed).items() if rate is not None)


def _rates(probed: ProbeReport) -> dict[int, float | None]:
    return dict(zip(probed.layers, probed.learning_rates, strict=True))


def summarize(
    run: RunContext,
    probed: ProbeReport,
    grid: tuple[float, ...],
    chosen: Sequence[float],
    base_I: np.ndarray,
    rewards_A_S_I: np.ndarray,
) -> dict[str, Any]:
    """Returns the fields of the record that follow from the rewards.

    Args:
        run: The run.
        probed: The probes' report; its layers that move the policy were measured.
        grid: Learning rates that every arm was tried at.
        chosen: Learning rate of each arm, the layers in order, then full-parameter RL.
        base_I: Reward of the base model on each item.
        rewards_A_S_I: Reward of each arm, training seed and item.

    Raises:
        DataError: The full-parameter gain is not clearly above 0, so there is no ratio.
    """
    found = estimate(rewards_A_S_I - base_I, level=CONFIDENCE_LEVEL, seed=run.config.seed)
    full = found.full
    if full.low <= 0:
        raise DataError(
            f"full-parameter RL gained {full.value:+.3f} [{full.low:+.3f}, {full.high:+.3f}]: not above 0, so "
            f"contributions cannot be measured; give more --steps, --num-seeds or --num-eval. All rewards are in "
            f"{run.folder / MEASURED_FILE}."
        )
    gains_A_S = [tuple(map(float, gains_S)) for gains_S in found.gains_A_S]
    layers = movable(probed)
    places = [probed.layers.index(layer) for layer in layers]
    return {
        "num_items": len(base_I),
        "base_score": float(base_I.mean()),
        "full": _arm_gain(chosen[-1], gains_A_S[-1], full),
        "layers": {
            layer: _arm_gain(rate, gains_S, value)
            for layer, rate, gains_S, value in zip(
                layers, chosen[:-1], gains_A_S[:-1], found.contribution_L, strict=True
            )
        },
        "best_layers": tuple(layers[row] for row in found.best),
        "level": CONFIDENCE_LEVEL,
        "seed_sd": found.seed_sd,
        "ceiling": found.ceiling,
        "estimator": ESTIMATOR.format(num_draws=NUM_BOOTSTRAP_DRAWS),
        "rates": grid,
        "probes": {name: tuple(scores[place] for place in places) for name, scores in probed.scores.items()},
        "reliability": dict(probed.reliability),
    }


def _arm_gain(learning_rate: float, gains_S: tuple[float, ...], interval: Interval) -> ArmGain:
    return ArmGain(
        learning_rate=learning_rate, gains=gains_S, value=interval.value, low=interval.low, high=interval.high
    )


def measurement_notes(
    probed: ProbeReport,
    grid: tuple[float, ...],
    arms: Sequence[Layers],
    chosen: Sequence[float],
    schedule: Schedule,
) -> list[str]:
    """Returns notes that a reader of the numbers needs.

    Args:
        probed: The probes' report.
        grid: Learning rates that every arm was tried at, smallest first.
        arms: The arms.
        chosen: Learning rate of each arm.
        schedule: Number and length of the trainings.
    """
    notes = list(probed.notes)
    if still := [layer for layer, rate in _rates(probed).items() if rate is None]:
        notes.append(f"not measured, since they do not move the policy at all: layers {', '.join(map(str, still))}")
    for rate, end, way in ((grid[0], "smallest", "smaller"), (grid[-1], "largest", "larger")):
        names = [name_of(layers) for layers, best in zip(arms, chosen, strict=True) if best == rate]
        if len(grid) > 1 and names:
            notes.append(
                f"the {end} of the rates, {rate:g}, was best for {', '.join(names)}: a {way} one might be better still"
            )
    if len(schedule.seeds) == 1:
        notes.append("one training seed: the intervals hold evaluation noise only, how runs differ is not known")
    return notes


def write_contribution(
    run: RunContext, seeds: tuple[int, ...], found: dict[str, Any], notes: Sequence[str], costs: dict[str, Cost]
) -> Contribution:
    """Writes contribution.json, which marks the measurement as finished.

    Args:
        run: The run.
        seeds: Training seeds of every arm.
        found: The fields that `summarize` returned.
        notes: Notes on the numbers.
        costs: Cost of each stage.

    Returns:
        The content of the file.
    """
    config, bench = run.config, run.bench
    result = Contribution(
        model=config.model,
        base=bench.loaded.weight_hash,
        architecture=str(bench.model.config.model_type),
        num_parameters=sum(parameter.numel() for parameter in bench.model.parameters()),
        task=bench.task.name,
        algorithm=config.algorithm,
        num_layers=len(bench.layers),
        steps=config.steps or 0,
        prompts_per_step=config.prompts_per_step or 0,
        group_size=config.group_size,
        seeds=seeds,
        signature=run.signature,
        seed=config.seed,
        notes=tuple(notes),
        cost={
            stage: {
                "generated_tokens": cost.generated_tokens,
                "layer_tokens": cost.layer_tokens,
                "seconds": cost.seconds,
            }
            for stage, cost in costs.items()
        },
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        **found,
    )
    run.folder.write(CONTRIBUTION_FILE, result.to_dict())
    return result
