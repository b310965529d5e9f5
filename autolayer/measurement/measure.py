"""`measure`: trains every layer, and all parameters, on several seeds, and reports each layer's contribution.

C(l) = (S_l - S_base) / (S_full - S_base). Every arm is tried at the same learning rates in short runs of the first
seed, continues at its best one, and is scored item by item against the base model. measured.json keeps the rewards of
every finished training, so that nothing is done twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from autolayer.core.config import Config, Options, config_of, with_options
from autolayer.core.errors import ConfigError, DataError
from autolayer.core.layer_set import Layers
from autolayer.core.progress import Progress
from autolayer.measurement.estimate import ESTIMATOR, NUM_BOOTSTRAP_DRAWS, Estimate, estimate
from autolayer.measurement.schedule import Schedule, rate_grid
from autolayer.measurement.training_runs import MEASURED_FILE, TrainingRuns, name_of
from autolayer.models.names import titled
from autolayer.pipeline.calibrate_stage import calibrate_stage
from autolayer.pipeline.probe_stage import probe_stage
from autolayer.pipeline.result_notes import run_notes
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.setup import setup
from autolayer.probes.probe_report import ProbeReport
from autolayer.reporting.contribution import ArmGain, Contribution
from autolayer.reporting.results import versions
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
        rates: Learning rates that every arm is tried at, such as [1e-4, 3e-4, 1e-3]; the default is a grid made from
            the probes.
        progress: Shows progress, such as `TerminalProgress()`; default: nothing is shown.
        options: The settings as keyword arguments instead of a `config`.

    Returns:
        The measured contributions. The run folder holds them as contribution.json; the same call resumes.

    Raises:
        AutolayerError: As `pick`; or full-parameter RL gained nothing that a contribution could be a share of.

    Example:
        found = autolayer.measure(model="tiny", task="math:arith", layers="0,3-5", num_seeds=2)
        print(found.values, found.full.value)
    """
    table = {name: value for name, value in (("num_seeds", num_seeds), ("rates", rates)) if value is not None}
    given = {**options, **table} if config is not None else {**options, **({"measure": table} if table else {})}
    with setup(config_of(config, given), progress, verb="measure") as run:
        if (done := run.folder.read(Contribution.FILE)) is not None:
            return Contribution.from_dict(done, run.folder / Contribution.FILE)
        if (run.config.num_eval or 0) < 2:
            run.folder.abandon()
            raise ConfigError(f"--num-eval {run.config.num_eval} cannot work: an interval needs at least 2 items.")

        calibration = calibrate_stage(run)
        probes = probe_stage(run, calibration, before_race=False)
        probed = probes.report

        movable = [place for place, rate in enumerate(probed.learning_rates) if rate is not None]
        layers = [probed.layers[place] for place in movable]
        grid, arms = rate_grid(run.config, probed, len(run.bench.layers)), [*((layer,) for layer in layers), "full"]
        schedule = Schedule.of(run.config, num_arms=len(arms), num_rates=len(grid))
        with run.progress.stage("measure", schedule.total) as bar:
            trials = TrainingRuns(run, grid, schedule, bar)
            base_I = trials.base("eval")
            chosen, rewards_A_S_I = zip(*map(trials.run, arms), strict=True)
            bar.advance(0, f"{len(arms)} arms, {len(schedule.seeds)} seeds")

        scale_I = relative_weights(run.bench.task, run.config.num_eval or 0)  # suites count equally, of any size
        base_I, rewards_A_S_I = np.array(base_I) * scale_I, np.array(rewards_A_S_I) * scale_I
        found = estimate(rewards_A_S_I - base_I, level=CONFIDENCE_LEVEL, seed=run.config.seed)
        if (full := found.full).low <= 0:
            raise DataError(
                f"full-parameter RL gained {full.value:+.3f} [{full.low:+.3f}, {full.high:+.3f}]: not above 0, so "
                f"contributions cannot be measured; give more --steps, --num-seeds or --num-eval. All rewards are in "
                f"{run.folder / MEASURED_FILE}."
            )
        result = Contribution(
            **_setting(run),
            **_estimates(found, layers, chosen),
            num_items=len(base_I),
            base_score=float(base_I.mean()),
            seeds=schedule.seeds,
            rates=grid,
            probes={name: tuple(scores[place] for place in movable) for name, scores in probed.scores.items()},
            reliability=probed.reliability,
            notes=(*run_notes(run), *_notes(probed, grid, arms, chosen, schedule), *trials.failures()),
            cost={
                stage: {"generated_tokens": c.generated_tokens, "layer_tokens": c.layer_tokens, "seconds": c.seconds}
                for stage, c in {"calibrate": calibration.cost, "probe": probes.cost, **trials.cost}.items()
            },
        )
        run.folder.write(Contribution.FILE, result.to_dict())  # marks the measurement as finished
        return result


def _setting(run: RunContext) -> dict[str, Any]:
    config, bench = run.config, run.bench
    return {
        "model": titled(config.model),
        "base": bench.loaded.weight_hash,
        "architecture": str(bench.model.config.model_type),
        "num_parameters": sum(parameter.numel() for parameter in bench.model.parameters()),
        "task": bench.task.name,
        "algorithm": config.algorithm,
        "num_layers": len(bench.layers),
        "steps": config.steps,
        "prompts_per_step": config.prompts_per_step,
        "group_size": config.group_size,
        "signature": run.signature,
        "seed": config.seed,
        "versions": versions(),
    }


def _estimates(found: Estimate, layers: Sequence[int], chosen: Sequence[float]) -> dict[str, Any]:
    """Returns the fields of the record that follow from the rewards; `chosen` holds the learning rate of each arm."""
    arms = [
        ArmGain(learning_rate=rate, gains=tuple(gains_S), value=one.value, low=one.low, high=one.high)
        for rate, gains_S, one in zip(chosen, found.gains_A_S, (*found.contribution_L, found.full), strict=True)
    ]
    return {
        "full": arms[-1],
        "layers": dict(zip(layers, arms[:-1], strict=True)),
        "best_layers": tuple(layers[row] for row in found.best),
        "level": CONFIDENCE_LEVEL,
        "seed_sd": found.seed_sd,
        "ceiling": found.ceiling,
        "estimator": ESTIMATOR.format(num_draws=NUM_BOOTSTRAP_DRAWS),
    }


def _notes(
    probed: ProbeReport,
    grid: tuple[float, ...],
    arms: Sequence[Layers],
    chosen: Sequence[float],
    schedule: Schedule,
) -> Iterator[str]:
    yield from probed.notes
    rates = zip(probed.layers, probed.learning_rates, strict=True)
    if still := [str(layer) for layer, rate in rates if rate is None]:
        yield f"not measured, since they do not move the policy at all: layers {', '.join(still)}"
    for rate, end, way in ((grid[0], "smallest", "smaller"), (grid[-1], "largest", "larger")):
        names = [name_of(layers) for layers, best in zip(arms, chosen, strict=True) if best == rate]
        if len(grid) > 1 and names:
            yield (
                f"the {end} of the rates, {rate:g}, was best for {', '.join(names)}: a {way} one might be better still"
            )
    if len(schedule.seeds) == 1:
        yield "one training seed: the intervals hold evaluation noise only, how runs differ is not known"
