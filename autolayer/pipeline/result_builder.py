"""Builds the PickResult of a run from what its stages found. Fields of stages that did not run are None."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autolayer.core import depth_prior
from autolayer.core.budget import final_layers
from autolayer.core.budget import full_run as planned_full_run
from autolayer.core.costs import Cost
from autolayer.core.statistics import Interval, paired_interval
from autolayer.models.names import titled
from autolayer.pipeline.calibrate_stage import CalibrationStage
from autolayer.pipeline.probe_stage import ProbeStage
from autolayer.pipeline.result_notes import finding_cost_notes, run_notes, stage_notes
from autolayer.pipeline.result_rows import (
    outcome_fields,
    predicted_baselines,
    predicted_rows,
    raced_rows,
    raced_sets,
)
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.search_stage import SearchStage
from autolayer.pipeline.train_stage import TrainStage
from autolayer.reporting.results import Gain, PickResult, RankingRow, StageCost, versions
from autolayer.rollouts.evaluation import suite_scores


def build_result(
    run: RunContext,
    calibration: CalibrationStage,
    probes: ProbeStage | None = None,
    search: SearchStage | None = None,
    training: TrainStage | None = None,
) -> PickResult:
    """Returns the result of a run so far; stages that did not run are None."""
    config, bench = run.config, run.bench
    stages = {"calibrate": calibration, "probe": probes, "search": search, "train": training}
    costs: dict[str, Cost] = {name: stage.cost for name, stage in stages.items() if stage is not None}
    exchange_rate = bench.account.exchange_rate(bench.engine)
    full_run = _full_run_cost(run, calibration, training)
    full_cost = bench.costs.total(full_run, exchange_rate)
    finding = sum((cost for name, cost in costs.items() if name != "train"), Cost())
    share = bench.costs.total(finding, exchange_rate) / full_cost if full_cost else None
    judged = full_run.seconds and depth_prior.applies(bench.model.num_parameters())  # seconds of small models are noise
    share_of_seconds = finding.seconds / full_run.seconds if judged else None
    interval = None if training is None else _interval(training)
    notes = [*run_notes(run), *stage_notes(run, calibration, probes, search, training, interval)]
    if search is not None or training is None:  # `train` finds nothing
        notes += finding_cost_notes(config, share, share_of_seconds)
    fields: dict[str, Any] = {}
    if probes is not None:
        rows = predicted_rows(probes.report, calibration.units.relative_cost)
        fields |= _probe_fields(run, probes, rows)
        if search is not None:
            fields |= _search_fields(run, probes, rows, search)
    if training is not None and interval is not None:
        fields |= _training_fields(run, training, interval, chosen=search is not None)
    return PickResult(
        status="ok" if training is not None and training.arm.step >= (config.steps or 0) else "incomplete",
        model=titled(config.model),
        task=bench.task.name,
        algorithm=config.algorithm,
        num_layers=len(bench.layers),
        candidates=run.candidates,
        cost={
            name: StageCost(
                generated_tokens=cost.generated_tokens,
                layer_tokens=bench.costs.total(cost, exchange_rate),
                seconds=cost.seconds,
                seconds_share=cost.seconds / full_run.seconds if full_run.seconds else None,
            )
            for name, cost in costs.items()
        },
        cost_share_of_full_run=share,
        seed=config.seed,
        signature=run.signature,
        versions=versions(),
        notes=tuple(notes),
        **fields,
    )


def _full_run_cost(run: RunContext, calibration: CalibrationStage, training: TrainStage | None) -> Cost:
    """Returns the planned cost of one full run, or the measured one once the training has run."""
    if training is None:
        return planned_full_run(run.config, calibration.units, final_layers(run.config, run.candidates))
    cost, steps = run.bench.checkpoints.cost(training.arm), run.config.steps or 0
    return cost if training.arm.step >= steps else cost * (steps / max(1, training.arm.step))


def _interval(training: TrainStage) -> Interval:
    return paired_interval(training.trained.rewards_I, training.base.rewards_I, suites_I=training.base.suites_I)


def _probe_fields(run: RunContext, probes: ProbeStage, rows: Sequence[RankingRow]) -> Mapping[str, Any]:
    report = probes.report
    layers = range(len(run.bench.layers))
    by_layer = {name: dict(zip(report.layers, scores, strict=True)) for name, scores in report.scores.items()}
    return {
        "ranking": rows,
        "best_layers": (rows[0].layer,),
        "probes": {name: [scores.get(layer) for layer in layers] for name, scores in by_layer.items()},
        "baselines": predicted_baselines(report, rows),
    }


def _search_fields(
    run: RunContext, probes: ProbeStage, predicted: Sequence[RankingRow], search: SearchStage
) -> Mapping[str, Any]:
    outcome, single = search.outcome, run.config.top_k == 1
    if single:
        rows = raced_rows(outcome, predicted)
        fields: dict[str, Any] = {"ranking": rows, "baselines": predicted_baselines(probes.report, rows)}
    else:
        rows = raced_sets(outcome)
        fields = {"sets": rows}
    reference = "best" if any(row.measured is not None for row in rows) else None
    return {**fields, **outcome_fields(outcome, single=single), "contribution_reference": reference}


def _training_fields(run: RunContext, training: TrainStage, interval: Interval, *, chosen: bool) -> Mapping[str, Any]:
    arm, base, trained = training.arm, training.base, training.trained
    layers = tuple(range(len(run.bench.layers))) if arm.layers == "full" else arm.layers
    metrics = {"base": dict(base.metrics), "trained": dict(trained.metrics)} if base.metrics else None
    return {
        "trained_layers": layers,
        **({} if chosen else {"best_layers": layers}),
        "learning_rate": arm.learning_rate,
        "base_score": base.score,
        "trained_score": trained.score,
        "suites": suite_scores(run.bench.task, base, trained),
        "reward_metrics": metrics,
        "gain": Gain(**asdict(interval)),
    }
