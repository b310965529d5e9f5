"""Runs every probe on one shared batch and turns the scores into a prediction."""

from collections.abc import Callable, Sequence

import numpy as np

from autolayer.core import depth_prior
from autolayer.core.probe_plan import ProbePlan
from autolayer.probes import PROBES
from autolayer.probes.base import Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.known import KnownEnvironment
from autolayer.probes.predictor import fit, predict
from autolayer.probes.probe_report import ProbeReport
from autolayer.probes.shared_batch import make_folds
from autolayer.probes.starting_rates import starting_rates, steps_to_distance
from autolayer.rollouts.rollouts import Rollouts
from autolayer.training.workbench import Workbench


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
    """Scores every candidate with every probe, and predicts contribution from what is `known` of other environments.

    The base weights are loaded. `rollouts` are those of calibration on the `probe` split; what is missing is sampled
    here. The longer the final run (`total_steps`), the lower the starting rates. `on_probe` is called with a probe's
    name when it has finished.
    """
    sampled = len(rollouts.rewards) // rollouts.group_size
    folds = make_folds(bench, rollouts, plan.fold_prompts or max(1, sampled // num_folds), num_folds, seed)
    context = ProbeContext(bench=bench, layers=layers, folds=folds, plan=plan, seed=seed)
    scores: dict[str, Scores] = {}
    for name, probe in PROBES.items():
        is_planned = bool(plan.fold_prompts) or not probe.needs_gradients
        if is_planned and (found := probe.score(context)) is not None:
            assert found.scores_L.shape == (len(layers),) and np.isfinite(found.scores_L).all(), f"{name}: {found}"
            scores[name] = found
        on_probe(name)
    by_probe = {name: tuple(map(float, found.scores_L)) for name, found in scores.items()}
    num_parameters = bench.model.num_parameters()
    model = fit(known, is_small=not depth_prior.applies(num_parameters))
    prediction = predict(by_probe, layers, len(bench.layers), model=model, num_parameters=num_parameters)
    rates = starting_rates(context, steps_to_distance(total_steps))
    return ProbeReport(
        layers=layers,
        scores=by_probe,
        reliability={name: found.reliability for name, found in scores.items() if found.errors_L is not None},
        learning_rates=tuple(rates[layer] for layer in layers),
        notes=(*plan.notes, *context.notes),
        **vars(prediction),
    )
