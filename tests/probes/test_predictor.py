"""What the prediction learns, on simulated environments with known truth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autolayer.core import depth_prior
from autolayer.probes import predictor
from autolayer.probes.base import Scores
from autolayer.probes.known import KnownEnvironment
from autolayer.probes.predictor import FEATURES, MIN_BASES, SMALL, fit, predict, standard

# E environments, L layers, F features.

WEIGHTS_F = np.linspace(0.25, -0.05, len(FEATURES))
LAYERS = 12


def simulate(
    seed: int, *, base: str | None = None, num_layers: int = LAYERS, noise: float = 0.1, weights_F: Any = WEIGHTS_F
) -> KnownEnvironment:
    """An environment whose contributions follow the probes, in standard units, but for noise and a level of its own."""
    generator = np.random.default_rng(seed)
    scores_F_L = generator.normal(size=(len(FEATURES), num_layers))
    level = 0.6 + 0.2 * generator.normal()
    contribution_L = level + sum(w * standard(s) for w, s in zip(weights_F, scores_F_L, strict=True))
    contribution_L += noise * generator.normal(size=num_layers)
    units_F = 10.0 ** generator.integers(-3, 4, size=len(FEATURES))  # a probe's unit is its own
    signals = {
        name: tuple(map(float, scores * unit)) for name, scores, unit in zip(FEATURES, scores_F_L, units_F, strict=True)
    }
    return KnownEnvironment(
        name=f"simulated {seed}",
        base=base or f"base {seed}",
        architecture="qwen3",
        num_parameters=10**6,
        num_layers=num_layers,
        layers=tuple(range(num_layers)),
        contribution_L=tuple(map(float, contribution_L)),
        probings=(signals,),
    )


def world(count: int, *, first: int = 0, **options: Any) -> list[KnownEnvironment]:
    return [simulate(first + seed, num_layers=8 + 2 * (seed % 4), **options) for seed in range(count)]


def scores_of(known: KnownEnvironment) -> dict[str, Scores]:
    """The environment's probes as `run_probes` would give them, free of noise."""
    return {
        name: Scores(scores_L=np.array(scores), errors_L=np.zeros(len(scores)))
        for name, scores in known.probings[0].items()
    }


def predict_for(
    new: KnownEnvironment, known: Sequence[KnownEnvironment], *, num_parameters: int = 10**6, **options: Any
):
    probes = options.get("probes", scores_of(new))
    return predict(probes, new.layers, new.num_layers, model=fit(known), num_parameters=num_parameters)


# Learning


def test_planted_weights_are_found() -> None:
    found = fit(world(30))
    assert found.num_environments == 30
    assert found.weights_F == pytest.approx(WEIGHTS_F, abs=0.03)
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
        assert found.weights_F == pytest.approx(plain.weights_F, abs=1e-9)
        assert (found.level, found.level_sd, found.deviation) == pytest.approx(
            (plain.level, plain.level_sd, plain.deviation), abs=1e-9
        )


def test_levels_are_no_part_of_what_is_learned() -> None:
    known = world(8)
    lifted = [
        replace(k, contribution_L=tuple(c + shift for c in k.contribution_L))
        for k, shift in zip(known, range(8), strict=True)
    ]
    assert fit(lifted).weights_F == pytest.approx(fit(known).weights_F)
    assert fit(lifted).deviation == pytest.approx(fit(known).deviation)


def test_errors_are_those_on_bases_that_the_fit_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two environments of one base share a rule of their own, which must not help to predict each other."""
    monkeypatch.setattr(predictor, "PENALTIES", (0.1,))
    every = np.eye(len(FEATURES))

    def learn(known: list[KnownEnvironment]) -> tuple[np.ndarray, np.ndarray]:
        return predictor._learn(known, [predictor._rows(each) for each in known], every)

    known = []
    for base in range(5):
        own_F = WEIGHTS_F + np.random.default_rng(base).normal(0, 0.2, len(FEATURES))
        known += [simulate(100 + 2 * base + task, base=str(base), weights_F=own_F) for task in range(2)]
    squares = []
    for new in known:
        weights_F, _ = learn([k for k in known if k.base != new.base])
        centred_L = np.array(new.contribution_L) - np.mean(new.contribution_L)
        error_L = centred_L - predictor.features(new.probings[0], len(new.layers)) @ weights_F
        squares.append(np.mean(error_L**2))
    _, found_E = learn(known)
    assert found_E == pytest.approx(squares, rel=1e-9)
    assert found_E.mean() > 1.1 * learn([replace(k, base=k.name) for k in known])[1].mean()


def test_noise_that_fits_by_chance_is_not_believed() -> None:
    nothing = 0 * WEIGHTS_F
    found = fit(world(4, weights_F=nothing))
    assert np.abs(found.weights_F).max() < 0.05 and found.deviation < 0.13


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
        deviations.append(found.deviation)
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


def test_large_models_have_the_weak_prior_of_the_published_positions() -> None:
    """And the published level and error, until a model of their size has been measured."""
    new = replace(simulate(99, num_layers=30), layers=tuple(range(0, 30, 2)))
    rule_L = standard(depth_prior.scores("position", new.layers, new.num_layers))
    wanted_L = depth_prior.PRIOR_CORRELATION * depth_prior.CONTRIBUTION_SD * rule_L
    for known in ([], world(10)):
        found = predict_for(new, known, probes={}, num_parameters=SMALL)
        assert np.array(found.predicted) - depth_prior.MEAN_CONTRIBUTION == pytest.approx(wanted_L)
        assert found.deviation == depth_prior.CONTRIBUTION_SD
    large = [replace(each, num_parameters=SMALL) for each in world(10)]
    measured = predict_for(new, large, probes={}, num_parameters=SMALL)
    assert np.mean(measured.predicted) == pytest.approx(fit(large).level)
    assert measured.deviation == fit(large).deviation
    flat = predict_for(new, [], probes={}, num_parameters=SMALL - 1)
    assert set(flat.predicted) == {depth_prior.MEAN_CONTRIBUTION}


def test_with_few_bases_nothing_is_learned_and_it_says_so() -> None:
    tasks = [simulate(10 * base + task, base=str(base)) for base in range(MIN_BASES) for task in range(3)]
    few, new = [k for k in tasks if k.base != "0"], simulate(99)
    for num_parameters in (10**6, 10**9):
        none = predict_for(new, [], num_parameters=num_parameters)
        assert none.learned_from == 0
        assert predict_for(new, few, num_parameters=num_parameters) == none
        assert predict_for(new, tasks, num_parameters=num_parameters).learned_from == len(tasks)
    assert none.deviation == depth_prior.CONTRIBUTION_SD and np.mean(none.predicted) == pytest.approx(
        depth_prior.MEAN_CONTRIBUTION
    )


@pytest.mark.parametrize("known", [[], world(6)], ids=["fallback", "learned"])
@pytest.mark.parametrize("num_parameters", [10**6, 10**9])
def test_a_probe_that_is_missing_or_sees_no_difference_says_nothing(
    known: list[KnownEnvironment], num_parameters: int
) -> None:
    new = simulate(99)
    probes = scores_of(new)

    def found(probes: dict[str, Scores]) -> np.ndarray:
        predicted = predict_for(new, known, probes=probes, num_parameters=num_parameters).predicted
        assert np.isfinite(predicted).all()
        return np.array(predicted)

    blank = found({})
    for name in FEATURES:
        others = {other: scores for other, scores in probes.items() if other != name}
        constant = Scores(scores_L=np.ones(LAYERS), errors_L=np.zeros(LAYERS))
        assert found({**others, name: constant}) == pytest.approx(found(others))
        assert found({name: constant}) == pytest.approx(blank)
        assert found({name: probes[name]}) != pytest.approx(blank)
    stranger = probes[FEATURES[0]]
    assert found({**probes, "random": stranger, "gain_per_kl": stranger}) == pytest.approx(found(probes))


def test_what_a_handful_of_folds_says_about_reliability_changes_nothing() -> None:
    new, known = simulate(99), world(6)
    doubtful = {name: Scores(scores_L=s.scores_L, errors_L=np.full(LAYERS, 1e9)) for name, s in scores_of(new).items()}
    assert predict_for(new, known, probes=doubtful) == predict_for(new, known)


def test_environments_without_some_probes_are_learned_from_too() -> None:
    known = world(12)
    bare = [replace(k, probings=({n: s for n, s in k.probings[0].items() if n == FEATURES[0]},)) for k in known[:6]]
    found = predict_for(simulate(99), [*bare, *known[6:]])
    assert found.learned_from == 12 and np.isfinite(found.predicted).all()


def test_units_of_probes_do_not_matter() -> None:
    new, known = simulate(99), world(6)
    scaled = {
        name: Scores(scores_L=scores.scores_L * 1e-6 + 4, errors_L=np.zeros(LAYERS))
        for name, scores in scores_of(new).items()
    }
    assert predict_for(new, known, probes=scaled).predicted == pytest.approx(
        predict_for(new, known).predicted, rel=1e-4
    )


def test_a_single_candidate_is_predicted_at_the_level() -> None:
    known = world(6)
    probes = {name: Scores(scores_L=np.array([3.0]), errors_L=np.array([0.1])) for name in FEATURES}
    for num_parameters, level in ((10**6, fit(known).level), (10**9, depth_prior.MEAN_CONTRIBUTION)):
        found = predict(probes, (5,), 8, model=fit(known), num_parameters=num_parameters)
        assert found.predicted == pytest.approx([level])


def test_fixed_weights_are_kept_where_learning_does_not_beat_them() -> None:
    """Contributions that no probe has to do with teach nothing; the level and the error are still learned."""
    fixed_F = np.array(list(predictor.FALLBACK.values())) * depth_prior.CONTRIBUTION_SD
    found = [fit(world(8, first=100 * repeat, weights_F=fixed_F, noise=2.0)) for repeat in range(10)]
    unit_F = fixed_F / np.linalg.norm(fixed_F)
    kept = [model.weights_F / np.linalg.norm(model.weights_F) == pytest.approx(unit_F) for model in found]
    assert sum(kept) >= 7  # by chance something else fits the others' bases better now and then
    assert all(model.num_environments == 8 and model.deviation > 1.5 for model in found)
