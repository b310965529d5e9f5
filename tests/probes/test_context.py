"""Values of the step response between the layers that it is measured at."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autolayer.core.probe_plan import response_layers
from autolayer.probes.context import ProbeContext


def test_few_candidates_are_all_measured_and_many_at_even_distances_with_both_ends() -> None:
    assert response_layers((0, 3, 5), 10) == (0, 3, 5)
    assert response_layers((4,), 10) == (4,)
    assert response_layers(tuple(range(28)), 10) == (0, 3, 6, 9, 12, 15, 18, 21, 24, 27)


def test_between_measured_layers_values_follow_a_geometric_line_and_a_layer_without_a_gradient_has_none() -> None:
    layers = tuple(range(11))
    missing = next(layer for layer in layers if layer not in response_layers(layers, 10))
    gradients = [{layer: {"w": torch.ones(1)} for layer in layers} for _ in range(2)]
    context = ProbeContext(bench=Any, layers=layers, folds=[], plan=Any, seed=0)  # pyright: ignore
    vars(context)["gradients"] = gradients
    vars(context)["responses"] = {
        layer: [SimpleNamespace(deviation=2.0**layer, distance_step=3.0**layer, reaches=(1.0, 4.0**layer))]
        for layer in response_layers(layers, 10)
    }
    assert context.deviation(missing) == pytest.approx(2.0**missing)
    assert context.distance_step(missing) == pytest.approx(3.0**missing)
    assert context.reaches(missing) == pytest.approx([1.0, 4.0**missing])
    for gradient in gradients:
        gradient[missing]["w"].zero_()
    assert context.deviation(missing) == context.distance_step(missing) == 0.0
    assert context.reaches(missing) == [0.0, 0.0]
