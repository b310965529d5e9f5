"""Runs every probe on one shared batch and turns the scores into a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autolayer.core.budget import ProbePlan
from autolayer.core.errors import ConfigError, DataError
from autolayer.probes import PROBES
from autolayer.probes.base import Scores
from autolayer.probes.context import ProbeContext, make_fold
from autolayer.probes.known import KnownEnvironment
from autolayer.probes.predictor import fit, predict
from autolayer.probes.starting_rates import combined_rate, starting_rates, steps_to_distance
from autolayer.rollouts.types import Rollouts, request_seed
from autolayer.training.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What the probes say; lists in the candidates' order."""

    layers: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    """Probe name -> score per candidate; probes that the plan left out are missing."""
    reliability: dict[str, float]
    """Probe name -> share of its variance over layers that is not noise."""
    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    deviation: float
    learned_from: int
    """Measured environments that the prediction has learned from."""
    learning_rates: tuple[float | None, ...]
    """Where each candidate's learning rate starts; None for a layer that moves nothing."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProbeReport:
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**{**lists, "scores": {name: tuple(scores) for name, scores in values["scores"].items()}})


def run_probes(
    bench: Workbench,
    layers: tuple[int, ...],
    rollouts: Rollouts,
    plan: ProbePlan,
    *,
    num_folds: int,
    total_steps: int,
    seed: int,
    known: Sequence[KnownEnvironment] = (),
    on_probe: Callable[[str], None] = lambda name: None,
) -> ProbeReport:
    """Scores every candidate with every probe.

    Args:
        bench: With the base weights in.
        layers: Candidates.
        rollouts: What calibration sampled on the `probe` split; used first, the rest is sampled here.
        plan: Sizes.
        num_folds: Parts of the shared batch.
        total_steps: Of the final run: the longer it is, the slower it starts.
        seed: Of the run.
        known: Measured environments that the prediction may learn from.
        on_probe: Called with a probe's name when it has finished.
    """
    folds = [make_fold(bench, part) for part in shared_batch(bench, rollouts, plan.fold_prompts, num_folds, seed)]
    context = ProbeContext(bench=bench, layers=layers, folds=folds, plan=plan, seed=seed)
    scores: dict[str, Scores] = {}
    for name, probe in PROBES.items():
        if (found := probe.score(context)) is not None:
            assert found.scores_L.shape == (len(layers),) and np.isfinite(found.scores_L).all(), f"{name}: {found}"
            scores[name] = found
        on_probe(name)
    num_parameters = bench.model.num_parameters()
    prediction = predict(scores, layers, len(bench.layers), model=fit(known), num_parameters=num_parameters)
    rates = starting_rates(context, steps_to_distance(total_steps))
    return ProbeReport(
        layers=layers,
        scores={name: tuple(map(float, found.scores_L)) for name, found in scores.items()},
        reliability={name: found.reliability for name, found in scores.items() if found.errors_L is not None},
        predicted=prediction.predicted,
        low=prediction.low,
        high=prediction.high,
        deviation=prediction.deviation,
        learned_from=prediction.learned_from,
        learning_rates=tuple(rates[layer] for layer in layers),
        notes=plan.notes,
    )


def shared_batch(bench: Workbench, rollouts: Rollouts, fold_prompts: int, num_folds: int, seed: int) -> list[Rollouts]:
    """Equal parts with no prompt in two of them."""
    group_size = rollouts.group_size
    have, rows = len(rollouts.rewards) // group_size, bench.task.splits["probe"]
    num_folds = min(num_folds, len(rows))
    if num_folds < 2:
        raise DataError(
            f"the probe split has {len(rows)} row: give at least 2, since no direction is judged on itself."
        )
    fold_prompts = min(fold_prompts, len(rows) // num_folds)
    wanted = fold_prompts * num_folds
    if wanted > have:
        more = rows[have:wanted]
        seeds = [
            request_seed(seed, "probe", have + i // group_size, i % group_size) for i in range(len(more) * group_size)
        ]
        rollouts = rollouts + bench.sample(more, seeds, group_size)
    return [rollouts[start : start + fold_prompts] for start in range(0, wanted, fold_prompts)]


def joint_rate(report: ProbeReport) -> float:
    """The rate of training all probed layers together.

    Raises:
        ConfigError: None of the layers moves the policy.
    """
    rates = [rate for rate in report.learning_rates if rate is not None]
    if not rates:
        raise ConfigError(f"layers {list(report.layers)} do not move the policy at all: give other --layers.")
    return combined_rate(rates)
