"""The prediction learns, on simulated environments with known truth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autolayer.core import depth_prior
from autolayer.core.depth_prior import SMALL
from autolayer.probes.known import KnownEnvironment
from autolayer.probes.predictor import MIN_BASES, PUBLISHED, SIGNAL, Prediction, fit, predict, standard

# E environments, L layers.

SLOPE = 0.2
LAYERS = 12


def simulate(
    seed: int, *, base: str | None = None, num_layers: int = LAYERS, noise: float = 0.1, slope: float = SLOPE
) -> KnownEnvironment:
    """An environment whose contributions follow the signal, in standard units, but for noise and a level of its own."""
    generator = np.random.default_rng(seed)
    scores_L = generator.normal(size=num_layers)
    level = 0.6 + 0.2 * generator.normal()
    contribution_L = level + slope * standard(scores_L) + noise * generator.normal(size=num_layers)
    unit = 10.0 ** generator.integers(-3, 4)  # a probe's unit is its own
    return KnownEnvironment(
        name=f"simulated {seed}",
        base=base or f"base {seed}",
        architecture="qwen3",
        num_parameters=10**6,
        num_layers=num_layers,
        layers=tuple(range(num_layers)),
        contribution_L=tuple(map(float, contribution_L)),
        probings=({SIGNAL: tuple(map(float, scores_L * unit)), "other": tuple(map(float, -scores_L))},),
    )


def world(count: int, *, first: int = 0, **options: Any) -> list[KnownEnvironment]:
    return [simulate(first + seed, num_layers=8 + 2 * (seed % 4), **options) for seed in range(count)]


def predict_for(
    new: KnownEnvironment,
    known: Sequence[KnownEnvironment],
    *,
    num_parameters: int = 10**6,
    scores: Sequence[float] | None = None,
) -> Prediction:
    found = new.probings[0] if scores is None else {SIGNAL: scores}
    model = fit(known, is_small=num_parameters < SMALL)
    return predict(found, new.layers, new.num_layers, model=model, num_parameters=num_parameters)


# Learning


def test_a_planted_slope_is_found() -> None:
    found = fit(world(30))
    assert found.num_environments == 30
    assert found.slope == pytest.approx(SLOPE, abs=0.03)
    assert found.deviation == pytest.approx(0.1, rel=0.15)
    assert found.level == pytest.approx(0.6, abs=0.1) and 0.1 < found.level_sd < 0.3


def test_every_environment_counts_the_same() -> None:
    """However often one was probed, and however many layers it has."""
    known = world(8)
    plain = fit(known)
    often = [replace(known[0], probings=known[0].probings * 5), *known[1:]]

    def doubled(values: Sequence[Any]) -> tuple:
        return tuple(values) * 2

    deep = replace(
        known[0],
        layers=doubled(known[0].layers),
        contribution_L=doubled(known[0].contribution_L),
        probings=({n: doubled(scores) for n, scores in known[0].probings[0].items()},),
    )
    for changed in (often, [deep, *known[1:]]):
        found = fit(changed)
        assert vars(found) == pytest.approx(vars(plain), abs=1e-9)


def test_levels_are_no_part_of_what_is_learned() -> None:
    known = world(8)
    lifted = [
        replace(k, contribution_L=tuple(c + shift for c in k.contribution_L))
        for k, shift in zip(known, range(8), strict=True)
    ]
    assert fit(lifted).slope == pytest.approx(fit(known).slope)
    assert fit(lifted).deviation == pytest.approx(fit(known).deviation)


def test_errors_are_those_on_bases_that_the_fit_has_not_seen() -> None:
    """Two environments of one base share a rule of their own, which must not help to predict each other."""
    known = []
    for base in range(5):
        own = SLOPE + np.random.default_rng(base).normal(0, 0.2)
        known += [simulate(100 + 2 * base + task, base=str(base), slope=own) for task in range(2)]
    squares = []
    for new in known:
        slope = fit([k for k in known if k.base != new.base]).slope
        centred_L = np.array(new.contribution_L) - np.mean(new.contribution_L)
        squares.append(np.mean((centred_L - slope * standard(np.array(new.probings[0][SIGNAL]))) ** 2))
    assert fit(known).deviation == pytest.approx(np.mean(squares) ** 0.5, rel=1e-9)
    assert fit(known).deviation > 1.05 * fit([replace(k, base=k.name) for k in known]).deviation


def test_a_fit_is_least_squares_over_all_layers_of_equal_environments() -> None:
    known = [simulate(seed) for seed in range(5)]
    x = np.concatenate([standard(np.array(each.probings[0][SIGNAL])) for each in known])
    y = np.concatenate([np.array(each.contribution_L) - np.mean(each.contribution_L) for each in known])
    assert fit(known).slope == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])


def test_noise_that_fits_by_chance_is_not_believed() -> None:
    found = fit(world(4, slope=0.0))
    assert abs(found.slope) < 0.05 and found.deviation < 0.13


# Predicting


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_four_of_five_contributions_of_a_new_base_lie_in_their_interval(noise: float) -> None:
    inside = []
    for repeat in range(100):
        first = 10_000 + 100 * repeat
        new = simulate(first + 99, noise=noise)
        found = predict_for(new, world(8, first=first, noise=noise))
        inside += [low <= c <= high for low, c, high in zip(found.low, new.contribution_L, found.high, strict=True)]
    assert 0.72 < np.mean(inside) < 0.88


def test_the_deviation_is_the_error_against_the_models_mean() -> None:
    errors, deviations = [], []
    for repeat in range(40):
        first = 50_000 + 100 * repeat
        new = simulate(first + 99)
        found = predict_for(new, world(8, first=first))
        predicted_L, truth_L = np.array(found.predicted), np.array(new.contribution_L)
        errors.append(np.mean(((predicted_L - predicted_L.mean()) - (truth_L - truth_L.mean())) ** 2))
        deviations.append(found.deviations[0])
    assert np.mean(deviations) == pytest.approx(np.mean(errors) ** 0.5, rel=0.2)


def test_the_better_layer_is_predicted_above_the_worse() -> None:
    new = simulate(99)
    found = predict_for(new, world(20))
    assert np.corrcoef(found.predicted, new.contribution_L)[0, 1] > 0.8
    assert found.learned_from == 20
    assert all(low < value < high for low, value, high in zip(found.low, found.predicted, found.high, strict=True))


@pytest.mark.parametrize("num_parameters", [10**6, SMALL - 1, SMALL, 8 * 10**9])
def test_where_layers_lie_in_measured_models_teaches_nothing(num_parameters: int) -> None:
    known, new = world(10), simulate(99)
    turned = [replace(k, layers=k.layers[::-1], contribution_L=k.contribution_L) for k in known]
    deeper = [replace(k, num_layers=40, layers=tuple(range(20, 20 + len(k.layers)))) for k in known]
    plain = predict_for(new, known, num_parameters=num_parameters)
    for changed in (turned, deeper):
        found = predict_for(new, changed, num_parameters=num_parameters)
        assert found == plain


def _following_depth(environment: KnownEnvironment) -> KnownEnvironment:
    shape_L = standard(depth_prior.predicted(environment.layers, environment.num_layers))
    return replace(environment, contribution_L=tuple(0.7 + 0.4 * shape_L))


def test_large_models_have_the_depth_prior() -> None:
    """They also get the published level and error, until a model of their size has been measured."""
    new = replace(simulate(99, num_layers=30), layers=tuple(range(0, 30, 2)))
    wanted_L = depth_prior.predicted(new.layers, new.num_layers)
    alike = [1.0] * len(new.layers)
    for known in ([], world(10)):
        found = predict_for(new, known, scores=alike, num_parameters=SMALL)
        assert np.array(found.predicted) == pytest.approx(wanted_L)
        assert np.array(found.deviations) == pytest.approx(depth_prior.error_deviation(new.layers, new.num_layers))
    large = [_following_depth(replace(each, num_parameters=SMALL)) for each in world(10)]
    measured, learned = predict_for(new, large, scores=alike, num_parameters=SMALL), fit(large, is_small=False)
    assert np.array(measured.predicted) == pytest.approx(learned.level + learned.slope * standard(wanted_L))
    assert learned.slope == pytest.approx(0.4) and learned.level == pytest.approx(0.7)
    assert set(measured.deviations) == {learned.deviation} and measured.learned_from == 10
    flat = predict_for(new, [], scores=alike, num_parameters=SMALL - 1)
    assert set(flat.predicted) == {depth_prior.MEAN_CONTRIBUTION}


def test_with_few_bases_nothing_is_learned_and_it_says_so() -> None:
    tasks = [simulate(10 * base + task, base=str(base)) for base in range(MIN_BASES) for task in range(3)]
    few, new = [k for k in tasks if k.base != "0"], simulate(99)
    assert fit([]) == fit(few) == PUBLISHED
    for num_parameters in (10**6, 10**9):
        none = predict_for(new, [], num_parameters=num_parameters)
        assert none.learned_from == 0
        same_size = [replace(task, num_parameters=num_parameters) for task in tasks]
        assert predict_for(new, same_size, num_parameters=num_parameters).learned_from == len(tasks)
        assert predict_for(new, same_size, num_parameters=10**15 // num_parameters).learned_from == 0
    assert set(predict_for(new, [], num_parameters=10**6).deviations) == {depth_prior.DEVIATION}
    few_small = predict_for(new, [], num_parameters=10**6)
    assert np.mean(few_small.predicted) == pytest.approx(depth_prior.MEAN_CONTRIBUTION)


def test_environments_without_the_signal_teach_the_level_only() -> None:
    known = world(12)
    bare = [replace(k, probings=({"other": k.probings[0]["other"]},)) for k in known[:6]]
    found = fit([*bare, *known[6:]])
    assert found.num_environments == 12 and found.level == pytest.approx(fit(known).level)
    assert found.slope == pytest.approx(fit(known[6:]).slope)
    assert fit(bare).slope == 0 and fit(bare).deviation > 0


def test_units_of_the_signal_do_not_matter() -> None:
    new, known = simulate(99), world(6)
    scaled = [score * 1e-6 + 4 for score in new.probings[0][SIGNAL]]
    assert predict_for(new, known, scores=scaled).predicted == pytest.approx(
        predict_for(new, known).predicted, rel=1e-4
    )


def test_a_single_candidate_is_predicted_at_the_level() -> None:
    known = world(6)
    for num_parameters, level in ((10**6, fit(known).level), (10**9, float(depth_prior.predicted([5], 8)[0]))):
        found = predict({SIGNAL: (3.0,)}, (5,), 8, model=fit(known), num_parameters=num_parameters)
        assert found.predicted == pytest.approx([level])
