"""The prediction for pretrained models, against what was measured on two of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build_model
from workbench_helpers import PLAN, make_bench, sample_folds

from autolayer.core import depth_prior
from autolayer.probes import PROBES
from autolayer.probes.predictor import PUBLISHED, predict
from autolayer.probes.pretrained import predict_pretrained
from autolayer.probes.run_probes import run_probes
from autolayer.rollouts.rollouts import Rollouts

MEASURED = {
    "SmolLM2-135M, sums": (
        30,
        (0, 5, 10, 15, 20, 25, 29),
        (1, 0.90, 0.99, 0.93, 0.75, 0.05, 0.09),
        (1, 1, 1, 0.82, 0.82, 0, 0),
    ),
    "SmolLM2-135M, another task": (
        30,
        (1, 9, 13, 17, 20, 23, 26, 29),
        (0.59, 0.78, 0.99, 1, 1, 0.49, 0.07, 0.17),
        (1, 1, 1, 0.97, 0.88, 0.60, 0.07, 0.03),
    ),
    "Gemma 3 270M, sums": (
        18,
        (1, 5, 9, 12, 13, 15, 17),
        (0.83, 1, 0.90, 0.88, 0.77, 0.59, 0.37),
        (1, 1, 0.90, 0.78, 0, 0, 0),
    ),
}
"""Number of layers, layers, contribution over the best layer's, and cutoff."""


@pytest.mark.parametrize("name", MEASURED)
def test_it_is_near_what_was_measured_and_no_bad_layer_is_praised(name: str) -> None:
    num_layers, layers, contribution, cutoff = MEASURED[name]
    truth_L = np.array(contribution)
    found = predict({"cutoff": cutoff}, layers, num_layers, model=PUBLISHED, num_parameters=135 * 10**6)
    predicted_L = np.array(found.predicted)
    assert np.corrcoef(predicted_L, truth_L)[0, 1] > 0.9
    assert 0.85 < predicted_L.max() < 1.15 and (predicted_L[truth_L < 0.3] < 0.5).all()
    assert truth_L[predicted_L.argmax()] >= 0.9
    inside_L = (found.low <= truth_L) & (truth_L <= found.high)
    assert inside_L.mean() >= 0.75


def test_a_layer_that_the_base_does_not_read_is_not_written_off() -> None:
    read, unread = (predict_pretrained({"cutoff": [value] * 30}, range(30), 30) for value in (1.0, 0.0))
    assert (read[0] > unread[0]).all() and (unread[0] > 0.25).all()
    assert (read[1] < unread[1]).all()


@pytest.mark.parametrize("scores", [{}, {"trusted_gain": [5.0] * 30}])
def test_without_the_cutoff_depth_alone_predicts(scores: Any) -> None:
    predicted_L, deviation_L = predict_pretrained(scores, range(30), 30)
    assert predicted_L == pytest.approx(depth_prior.predicted(range(30), 30))
    assert deviation_L.argmin() == 13 and deviation_L[13] == pytest.approx(0.10, abs=0.01)
    assert deviation_L[29] == pytest.approx(0.10 + 0.35 * 0.55)


SUMS, LARGER = (
    ((0, 3, 6, 9, 12, 14, 20, 25, 29), (0.85, 0.85, 0.90, 1.02, 1.07, 0.99, 0.79, 0.33, 0.36)),
    ((0, 3, 14, 20, 25, 29), (0.42, 0.41, 0.75, 0.88, 0.28, 0.44)),
)
"""Contributions on two tasks of RealBench with the first training seed: `python examples/realbench/table.py`."""
SIGN_GAIN = (
    [
        0.51,
        0.44,
        0.43,
        0.40,
        0.40,
        0.45,
        0.42,
        0.45,
        0.52,
        0.65,
        0.74,
        1.01,
        0.97,
        1.02,
        0.94,
        0.61,
        0.56,
        0.62,
        0.64,
        0.58,
        0.39,
        0.27,
        0.21,
        0.14,
        0.11,
        0.08,
        0.08,
        0.09,
        0.08,
        0.22,
    ],
    [
        0.42,
        0.37,
        0.38,
        0.34,
        0.38,
        0.42,
        0.42,
        0.41,
        0.56,
        0.66,
        0.64,
        0.79,
        0.76,
        0.74,
        0.92,
        0.84,
        0.94,
        0.97,
        0.89,
        1.08,
        0.86,
        0.45,
        0.52,
        0.31,
        0.13,
        0.07,
        0.08,
        0.09,
        0.09,
        0.26,
    ],
)
"""The scores of one pick on each, in units of the mean of the three highest."""


@pytest.mark.parametrize(("measured", "gains"), zip((SUMS, LARGER), SIGN_GAIN, strict=True))
def test_the_gain_of_a_small_step_moves_the_best_layer_and_sees_the_cliff(measured: Any, gains: list[float]) -> None:
    layers, contribution = measured
    predicted_L, deviation_L = predict_pretrained({"sign_gain": gains}, range(30), 30)
    assert np.corrcoef(predicted_L[list(layers)], contribution)[0, 1] > 0.75
    truth_L = np.interp(range(30), layers, contribution)
    assert truth_L.max() - truth_L[predicted_L.argmax()] < 0.15
    assert (predicted_L[truth_L < 0.35] < 0.5).all()
    assert (deviation_L < depth_prior.error_deviation(range(30), 30)).all()


@pytest.mark.parametrize("gains", [[0.0] * 30, [-1.0] * 30])
def test_gains_that_say_nothing_leave_depth_alone(gains: list[float]) -> None:
    predicted_L, _ = predict_pretrained({"sign_gain": gains}, range(30), 30)
    assert predicted_L == pytest.approx(depth_prior.predicted(range(30), 30))
    few, _ = predict_pretrained({"sign_gain": [5.0, 0.0]}, (3, 20), 30)
    assert few == pytest.approx(depth_prior.predicted((3, 20), 30))


def test_a_score_outside_its_range_counts_as_its_end() -> None:
    wild, tame = (predict_pretrained({"cutoff": ends}, (3, 20), 30) for ends in ([1.4, -0.2], [1.0, 0.0]))
    assert wild[0].tolist() == tame[0].tolist() and wild[1].tolist() == tame[1].tolist()


def test_where_the_budget_pays_for_no_gradients_rates_are_typical_and_no_weight_needs_one(tmp_path: Path) -> None:
    bench = make_bench(build_model("qwen3", initializer_range=0.3), tmp_path)
    plan = replace(PLAN, fold_prompts=0, response_folds=0, response_prompts=0, cutoff_pairs=6)
    rollouts = Rollouts.joined(sample_folds(bench), 4)
    start = bench.spent
    report = run_probes(bench, (0, 2, 3), rollouts, plan, num_folds=3, total_steps=30, seed=0)
    assert set(report.scores) == {"cutoff", *(name for name, probe in PROBES.items() if probe.is_baseline)}
    assert (bench.spent - start).generated_tokens == 0, "calibration's completions are enough"
    hidden = bench.model.config.get_text_config().hidden_size
    assert report.learning_rates == pytest.approx([0.3 / hidden / 10] * 3)


def test_the_gain_of_several_steps_takes_the_place_of_that_of_one() -> None:
    layers = tuple(range(30))
    later, earlier = [float(layer) for layer in layers], [float(29 - layer) for layer in layers]
    alone, _ = predict_pretrained({"self_imitation": later}, layers, 30)
    both, _ = predict_pretrained({"sign_gain": earlier, "self_imitation": later}, layers, 30)
    one, _ = predict_pretrained({"sign_gain": later}, layers, 30)
    assert both.tolist() == alone.tolist() == one.tolist()
