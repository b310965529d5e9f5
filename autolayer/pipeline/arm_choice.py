"""Chooses the arms to train: the candidates of the race, and the arm of `train`."""

from dataclasses import replace

from autolayer.core.arms import Arm
from autolayer.core.errors import ConfigError
from autolayer.models import lora
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.top_k_sets import candidate_sets
from autolayer.probes.probe_report import ProbeReport, joint_rate
from autolayer.search.records import Candidate


def insert_adapters(run: RunContext) -> None:
    """Inserts the adapters of --adapter. Call it after the probes, which score whole layers."""
    if run.config.adapter is not None and not lora.adapter_parameters(run.bench.model):
        run.bench.adapt(run.candidates, run.config.seed)


def race_candidates(run: RunContext, report: ProbeReport) -> list[Candidate]:
    """Returns the candidates of the race: single layers, or with --top-k sets of layers.

    A layer that does not move the policy cannot be trained, so it does not race.
    """
    factor, fixed = _rate_factor(run), run.config.learning_rate
    candidates = [
        Candidate(
            layers=(layer,),
            predicted=predicted,
            predicted_sd=deviation,
            learning_rate=fixed or rate * factor,
        )
        for layer, predicted, deviation, rate in zip(
            report.layers, report.predicted, report.deviations, report.learning_rates, strict=True
        )
        if rate is not None
    ]
    if not candidates:
        raise ConfigError(
            f"none of the candidate layers {list(report.layers)} changes the policy, so none can be trained: give "
            "other --layers."
        )
    if run.config.top_k == 1:
        return candidates
    sets = candidate_sets(candidates, run.config.top_k, len(run.bench.layers))
    return [replace(each, learning_rate=fixed or each.learning_rate) for each in sets]


def named_arm(run: RunContext, report: ProbeReport | None) -> Arm:
    """Returns the arm of `train`, with the layers that the user named; `report` is None if the user gave the rate."""
    rate = run.config.learning_rate
    if rate is None:
        assert report is not None
        rate = joint_rate(report) * _rate_factor(run)
    return Arm(layers=run.trained_layers, learning_rate=rate, seed=run.config.seed)


def _rate_factor(run: RunContext) -> float:
    return 1.0 if run.config.adapter is None else lora.learning_rate_factor(run.bench.model)
