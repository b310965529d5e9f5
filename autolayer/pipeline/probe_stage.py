"""The second stage: scores every candidate by cheap signals, and predicts its contribution and learning rate."""

import time
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter

from autolayer.core import depth_prior
from autolayer.core.budget import finding_budget
from autolayer.core.costs import Cost
from autolayer.core.probe_plan import plan_probes
from autolayer.core.run_folder import PROBE, ROLLOUTS
from autolayer.pipeline.calibrate_stage import CalibrationStage
from autolayer.pipeline.run_context import RunContext
from autolayer.probes import PROBES, known
from autolayer.probes.probe_report import ProbeReport
from autolayer.probes.run_probes import run_probes
from autolayer.rollouts.rollouts import Rollouts


@dataclass(frozen=True, kw_only=True)
class ProbeStage:
    """The result of the probes."""

    report: ProbeReport
    cost: Cost


def probe_stage(run: RunContext, calibration: CalibrationStage, *, before_race: bool = True) -> ProbeStage:
    """Scores the candidates, or reads the scores of an earlier call.

    The probes use the rollouts of calibration, whose lengths decide how many more the budget allows. If a race may
    follow (`before_race`), a part of the budget is kept for it.
    """
    run.run_once("probe", lambda: _probe(run, calibration, before_race), lambda: run.folder.read(PROBE) is not None)
    found = run.folder.read(PROBE) or {}
    with run.reading(PROBE):
        cost = Cost(**found.pop("cost"))
        return ProbeStage(report=TypeAdapter(ProbeReport).validate_python(found), cost=cost)


def _probe(run: RunContext, calibration: CalibrationStage, before_race: bool) -> None:
    config, bench, units = run.config, run.bench, calibration.units
    budget = finding_budget(config, units, run.candidates)
    is_small = not depth_prior.applies(bench.model.num_parameters())
    sizes = plan_probes(config, units, run.candidates, budget, searches=before_race, is_small=is_small)
    with run.reading(ROLLOUTS):
        rollouts = TypeAdapter(Rollouts).validate_python(run.folder.read(ROLLOUTS) or {})
    # The prediction does not learn from the packaged measurement of the same base model, only from the user's own.
    measured = known.packaged(without_base=bench.loaded.weight_hash)
    measured += known.history(config.history) if config.history else []
    with run.progress.stage("probe", len(PROBES)) as bar:
        before, started = bench.spent, time.perf_counter()
        report = bench.micro_batching.retry_on_out_of_memory(
            lambda: run_probes(
                bench,
                run.candidates,
                rollouts,
                sizes,
                num_folds=config.probe.num_folds,
                total_steps=config.steps or 0,
                seed=config.seed,
                known=measured,
                on_probe=lambda name: bar.advance(1, name),
            )
        )
        bar.note = f"{len(report.scores)} signals and baselines"
    # The linear algebra between the passes is counted in seconds only; on very small models it is most of the work.
    cost = replace(bench.spent - before, seconds=time.perf_counter() - started)
    run.folder.write(PROBE, {**asdict(report), "cost": asdict(cost)})
