"""The first stage: samples the base model, and refuses a run whose rewards give no signal."""

from dataclasses import asdict, dataclass

from autolayer.core.budget import UnitCosts, calibration_prompts
from autolayer.core.costs import Cost, PassSize
from autolayer.core.errors import AutolayerError
from autolayer.core.run_folder import CALIBRATION, PROBE, ROLLOUTS
from autolayer.pipeline.run_context import RunContext
from autolayer.training.calibration import Calibration, calibrate, refuse


@dataclass(frozen=True, kw_only=True)
class CalibrationStage:
    """The result of calibration."""

    calibration: Calibration
    units: UnitCosts
    """Costs of one prompt at the lengths that were sampled."""
    cost: Cost


def calibrate_stage(run: RunContext) -> CalibrationStage:
    """Samples the base model, or reads the result of an earlier call.

    If the rewards do not vary, it raises NoSignalError, and the run folder holds only calibration.json.
    """
    run.run_once("calibrate", lambda: _calibrate(run), lambda: _is_calibrated(run))
    found = run.folder.read(CALIBRATION) or {}
    with run.reading(CALIBRATION):
        cost = Cost(**found.pop("cost"))
        calibration = Calibration(**found)
    units = UnitCosts(
        costs=run.bench.costs,
        group_size=run.config.group_size,
        prompt_tokens=calibration.mean_prompt_tokens,
        completion_tokens=calibration.mean_completion_tokens,
        prefill_tokens=calibration.mean_prefill_tokens,
        group_pass=None if calibration.group_pass is None else PassSize(**calibration.group_pass),
        few_pass=None if calibration.few_pass is None else PassSize(**calibration.few_pass),
    )
    return CalibrationStage(calibration=calibration, units=units, cost=cost)


def _is_calibrated(run: RunContext) -> bool:
    # The probes need the rollouts of calibration.
    return run.folder.has(CALIBRATION) and run.folder.has(ROLLOUTS, PROBE)


def _calibrate(run: RunContext) -> None:
    bench, folder, num_prompts = run.bench, run.folder, calibration_prompts(run.config)
    with run.progress.stage("calibrate", None) as bar:
        before = bench.spent
        try:
            calibration, rollouts = bench.micro_batching.retry_on_out_of_memory(
                lambda: calibrate(bench, num_prompts, run.config.seed)
            )
        except AutolayerError:
            folder.abandon()
            raise
        found = {**asdict(calibration), "cost": asdict(bench.spent - before)}
        bar.note = f"mean reward {calibration.mean_reward:.3f}"
    if calibration.status != "ok":
        error = refuse(calibration, bench.task)
        folder.write(CALIBRATION, {**found, "message": str(error)})
        folder.abandon()
        raise error
    folder.write(ROLLOUTS, asdict(rollouts), indent=None)
    folder.write(CALIBRATION, found)
