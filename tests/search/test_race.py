"""Tests the race on simulated learning curves: which layers it finds, on which evidence, and what it reports."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from race_helpers import drive, make_candidates, make_config, make_runner, play

from autolayer.core import depth_prior
from autolayer.core.arms import Arm, RungResult
from autolayer.core.errors import SearchError
from autolayer.search.evidence import gather_evidence
from autolayer.search.outcome import indistinguishable
from autolayer.search.posterior import infer
from autolayer.search.race import Race
from autolayer.search.records import Candidate, RaceOutcome, Run, Slot


def test_same_records_same_decision():
    predicted_L = np.linspace(0.4, 1.0, 10)
    first = play(predicted_L, predicted_L, 60)
    second = play(predicted_L, predicted_L, 60)
    assert first[0] == second[0] and first[1] == second[1]
    outcome, batches, answers, config, candidates, base_I = first
    assert Race(config, candidates, base_I).due({}) == batches[0]
    assert Race(config, candidates, base_I).due(dict(reversed(answers.items()))) == outcome
    for number, run in enumerate(batches[1]):  # in whatever order a batch comes in, the rest of it is still wanted
        known = {r: answers[r] for r in (*batches[0], run)}
        assert Race(config, candidates, base_I).due(known) == tuple(r for r in batches[1] if r != batches[1][number])


def test_a_race_can_be_taken_up_at_every_point():
    predicted_L = np.linspace(0.4, 1.0, 8)
    outcome, batches, answers, config, candidates, base_I = play(predicted_L, predicted_L, 150, regret=0.0)
    known = {}
    for batch in batches:
        for number, run in enumerate(batch):
            assert Race(config, candidates, base_I).due(known) == batch[number:]
            known[run] = answers[run]
    assert Race(config, candidates, base_I).due(known) == outcome


@pytest.mark.parametrize("winner", [0, 5, 11])
def test_finds_a_clear_winner_whatever_its_depth(winner):
    contribution_L = np.full(12, 0.3)
    contribution_L[winner] = 1.3
    outcome, *_ = play(contribution_L, np.full(12, 0.6), 400, noise=0.1, sd=0.4, regret=0.0)
    assert (outcome.best, outcome.verdict) == ((winner,), "clear"), outcome.stop_reason
    assert outcome.winner.layers == (winner,) and outcome.winner.step > 0 and outcome.winner.checkpoint
    assert outcome.tied == () and outcome.ranking[0].layers == (winner,)


def test_a_reversed_prediction_does_not_hide_a_much_better_layer():
    contribution_L = np.linspace(-0.2, 1.2, 8)
    outcome, *_ = play(contribution_L, contribution_L[::-1], 400, noise=0.1)
    assert outcome.best[0] >= 6


@pytest.mark.parametrize(("above", "chosen"), [(0.1, 3), (0.87, 4)])
def test_a_tie_goes_to_the_highest_layer_that_is_not_beside_a_cliff(above, chosen):
    contribution_L = np.array([0.1, 0.1, 1.0, 1.0, 1.0, above, 0.1, 0.1])
    outcome, *_ = play(contribution_L, contribution_L, 2000, noise=0.05, sd=0.05, regret=0.1)
    assert outcome.verdict == "tied" and outcome.best == (chosen,)
    assert set(outcome.tied) <= {(2,), (3,), (4,)} - {(chosen,)} and outcome.tied
    assert outcome.expected_regret <= 0.1 and "cannot be told apart" in outcome.stop_reason


def test_a_pretrained_models_prediction_is_trusted_and_its_cliff_seen():
    """The published curves were predicted with such errors (examples/prior_errors.py)."""
    layers = range(30)
    values = zip(depth_prior.predicted(layers, 30), depth_prior.error_deviation(layers, 30), strict=True)
    candidates = [
        Candidate(layers=(layer,), predicted=float(predicted), predicted_sd=float(deviation), learning_rate=1e-4)
        for layer, (predicted, deviation) in enumerate(values)
    ]
    doubted, trusted = (
        Race(make_config(30, 0, is_pretrained=known), candidates, (0.2, 0.4)).due({}) for known in (False, True)
    )
    assert isinstance(doubted, RaceOutcome) and isinstance(trusted, RaceOutcome)
    assert doubted.best == trusted.best == (13,)
    assert trusted.expected_regret < 0.5 * doubted.expected_regret
    last = [next(row for row in outcome.ranking if row.layers == (29,)) for outcome in (doubted, trusted)]
    assert last[1].expected < 0.35 < 0.45 < last[0].expected
    assert (29,) not in trusted.tied and (29,) in doubted.tied and (10,) in trusted.tied
    assert "layers 0-" in trusted.stop_reason


def test_where_nothing_was_run_what_the_prediction_cannot_tell_apart_is_tied():
    alike, *_ = play(np.full(4, 0.7), np.full(4, 0.7), 0)
    assert (alike.verdict, alike.best, set(alike.tied)) == ("budget_spent", (3,), {(0,), (1,), (2,)})
    assert "cannot be told apart from" in alike.stop_reason
    worse, *_ = play(np.full(4, 0.7), [0.1, 0.7, 0.7, 0.7], 0, sd=0.01)
    assert worse.best == (3,) and (1,) in worse.tied and (2,) in worse.tied


def test_a_race_that_has_no_further_run_to_make_does_not_blame_the_budget():
    contribution_L = np.array([0.7, 0.72, 0.71, 0.7, 0.69, 0.7])
    outcome, *_ = play(contribution_L, np.full(6, 0.7), 1e9, regret=0.0, noise=0.5, sd=0.05)
    assert outcome.verdict == "budget_spent" and "no further run to make" in outcome.stop_reason
    small, *_ = play(contribution_L, np.full(6, 0.7), 60, regret=0.0, noise=0.5, sd=0.05)
    assert "more than is left of the budget" in small.stop_reason
    none, *_ = play(contribution_L, np.full(6, 0.7), 0)
    assert "pays for no race" in none.stop_reason


def test_where_the_budget_ends_the_race_the_leader_is_taken_not_the_cheapest():
    contribution_L = np.array([0.2, 0.6, 0.7, 0.5, 0.4, 0.4])
    chosen = []
    for seed in range(10):
        outcome, *_ = play(contribution_L, np.full(6, 0.6), 25, seed=seed, regret=0.0, noise=0.2)
        if outcome.verdict == "budget_spent":
            chosen.append(outcome.best)
            best = max(outcome.ranking, key=lambda row: row.expected)
            assert outcome.best == best.layers
    assert len(chosen) > 5 and set(chosen) != {(5,)}


def test_the_base_models_rollouts_are_no_evidence():
    """The rollouts of the first step are the same for all arms of a seed, so they must not count."""
    config, candidates = make_config(4, 100), make_candidates(np.full(4, 0.7))
    run, base_I = make_runner([0.0, 1.0, 0.5, 0.2], config)
    runs = [Run(slot=Slot(layers=c.layers, seed=0), from_step=0, to_step=2) for c in candidates]
    results = {each: run(Arm(layers=each.slot.layers, learning_rate=1e-4, seed=0), 2) for each in runs}
    found = gather_evidence(results, base_I)
    changed = {
        each: replace(result, train_rewards_P=(9.0,) * 4 + result.train_rewards_P[4:])
        for each, result in results.items()
    }
    again = gather_evidence(changed, base_I)
    assert len(found.rows) == 8 and {row.start for row in found.rows} == {1, 2}
    assert again.score_R == pytest.approx(found.score_R) and again.noise_R_R == pytest.approx(found.noise_R_R)


@pytest.mark.parametrize("winner", [(0, 1), (6, 7)])  # without evidence the tie would go to (6, 7)
def test_two_candidates_and_layer_sets(winner):
    config = make_config(8, 100)
    candidates = [
        Candidate(layers=layers, predicted=0.6, predicted_sd=0.2, learning_rate=1e-4) for layers in ((0, 1), (6, 7))
    ]
    contribution_L = np.full(8, 0.2)
    contribution_L[winner[0]] = 1.2
    run, base_I = make_runner(contribution_L, config, noise=0.1)
    outcome, *_ = drive(config, candidates, run, base_I)
    assert outcome.best == winner


def test_a_failed_arm_is_left_out_with_its_reason():
    contribution_L = np.linspace(0.2, 1.2, 6)
    outcome, batches, *_ = play(
        contribution_L, contribution_L, 150, fail=lambda each: "out of memory" if each.slot.layers == (5,) else None
    )
    row = next(row for row in outcome.ranking if row.layers == (5,))
    assert row.failed == "out of memory" and row.measured is None and row.probability_best == 0
    assert outcome.best != (5,) and outcome.expected_regret < 1
    assert sum(run.slot.layers == (5,) for batch in batches for run in batch) == 1, "a failed arm is not tried again"


def test_a_whole_rung_may_fail():
    contribution_L = np.linspace(0.2, 1.2, 6)
    outcome, batches, *_ = play(
        contribution_L, contribution_L, 150, fail=lambda each: "lost" if each.from_step else None
    )
    assert outcome.winner.step == batches[0][0].to_step


def test_if_every_arm_fails_the_first_reason_is_told():
    with pytest.raises(SearchError, match="out of memory"):
        play(np.ones(6), np.ones(6), 150, fail=lambda each: "out of memory")


def test_rates_stay_in_the_span_and_fixed_ones_are_kept():
    contribution_L = np.full(6, 0.7)
    _, _, answers, *_ = play(contribution_L, contribution_L, 900, regret=0.0)
    rates = {a.arm.learning_rate for a in answers.values()}
    assert len(rates) > 1 and all(1e-4 / 4 <= rate <= 1e-4 * 4 for rate in rates)
    for layer in range(6):  # a layer's rates are tried one after the other, each once from step 0
        runs = [run for run in answers if run.slot.layers == (layer,) and run.slot.seed == 0 and run.from_step == 0]
        assert [run.slot.rate_index for run in runs] == list(range(len(runs)))
    _, _, answers, *_ = play(contribution_L, contribution_L, 900, regret=0.0, fixed_rate=True)
    assert {a.arm.learning_rate for a in answers.values()} == {1e-4}
    assert {run.slot.rate_index for run in answers} == {0}


def test_finalists_get_a_fresh_seed_and_pair():
    _, batches, *_ = play(np.full(8, 0.7), np.full(8, 0.7), 800, regret=0.0)
    fresh = [[run for run in batch if run.slot.seed != 0] for batch in batches]
    assert any(len(runs) == 2 and len({run.slot.seed for run in runs}) == 1 for runs in fresh)


def test_measured_gain_is_the_paired_mean():
    outcome, _, answers, _, _, base_I = play(np.linspace(0.2, 1.2, 6), np.full(6, 0.7), 100)
    row = outcome.ranking[0]
    run, answer = max(
        ((run, a) for run, a in answers.items() if run.slot.layers == row.layers and a.arm == outcome.winner),
        key=lambda pair: pair[0].to_step,
    )
    gain_I = np.subtract(answer.select_rewards_I, base_I)
    assert row.measured is not None and row.measured.steps == run.to_step
    assert row.measured.gain == pytest.approx(gain_I.mean())
    assert row.measured.high - row.measured.gain == pytest.approx(1.96 * gain_I.std(ddof=1) / np.sqrt(len(gain_I)))


def test_without_evidence_the_posterior_is_the_prior():
    config, candidates = make_config(4, 10), make_candidates([0.2, 0.4, 0.6, 0.8], sd=0.1)
    posterior = infer(config, candidates, gather_evidence({}, (0.0, 1.0)), [True] * 4, num_draws=20_000)
    # The trust in the prediction is .5 on average, so its spread around the mean .5 is halved.
    assert posterior.expected_C == pytest.approx(np.array([0.35, 0.45, 0.55, 0.65]), abs=1e-9)
    assert posterior.ranked == [3, 2, 1, 0]
    assert posterior.draws_D_C.mean(axis=0) == pytest.approx(posterior.expected_C, abs=0.01)
    # Probabilities of being better than layer 3, by 20,000 draws: .23, .27, .35.
    assert indistinguishable(config, posterior, 3) == [3, 2, 1, 0]
    assert indistinguishable(replace(config, confidence=0.7), posterior, 3) == [3, 2]


def test_scale_and_offset_of_rewards_do_not_matter():
    contribution_L = np.linspace(0.3, 1.1, 6)
    config, candidates = make_config(6, 100), make_candidates(np.full(6, 0.7))
    run, base_I = make_runner(contribution_L, config)

    def other(arm, to_step):
        result = run(arm, to_step)
        scaled = tuple(50 * r - 300 for r in result.select_rewards_I)
        return replace(result, select_rewards_I=scaled, train_rewards_P=tuple(50 * r for r in result.train_rewards_P))

    plain, *_ = drive(config, candidates, run, base_I)
    scaled, *_ = drive(config, candidates, other, tuple(50 * r - 300 for r in base_I))
    assert plain.best == scaled.best
    assert [row.expected for row in plain.ranking] == pytest.approx([row.expected for row in scaled.ranking], abs=1e-6)


def test_equal_rewards_everywhere_leave_the_ranking_to_the_prediction():
    config, candidates = make_config(6, 40), make_candidates(np.linspace(0.5, 0.9, 6)[::-1])

    def run(arm, to_step):
        cost = config.step_cost(arm.layers) * (to_step - arm.step) + config.eval_cost
        return RungResult(
            arm=replace(arm, step=to_step), select_rewards_I=(1.0,) * 16, train_rewards_P=(1.0,) * 4, cost=cost
        )

    outcome, _, answers = drive(config, candidates, run, (1.0,) * 16)
    assert answers and outcome.verdict == "budget_spent" and outcome.spent.fits(config.budget)
    assert [row.layers for row in outcome.ranking] == [(layer,) for layer in range(6)]
    prior = infer(config, candidates, gather_evidence({}, (1.0,) * 16), [True] * 6)
    assert [row.expected for row in outcome.ranking] == pytest.approx(list(prior.expected_C), abs=0.05)


def test_a_clear_verdict_is_right_often_enough():
    right, regrets, promised = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        contribution_L = rng.normal(0.7, 0.3, 6)
        predicted_L = 0.7 + 0.5 * (contribution_L - 0.7) + rng.normal(0, 0.15, 6)
        for steps in (200, 800):  # two whole runs are hardly ever clear, eight are now and then
            outcome, *_ = play(
                contribution_L, predicted_L, steps, noise=0.2, sd=0.26, seed=seed, confidence=0.9, regret=1e-6
            )
            regrets.append(contribution_L.max() - contribution_L[outcome.best[0]])
            promised.append(outcome.expected_regret)
            if outcome.verdict == "clear":
                right.append(contribution_L[outcome.best[0]] == contribution_L.max())
    assert len(right) >= 10 and np.mean(right) >= 0.85
    assert np.mean(regrets) < np.mean(promised) + 0.03


def test_the_strategies_of_the_simulation_choose_better_than_chance():
    path = Path(__file__).parents[2] / "examples" / "benchmarks" / "race_simulation.py"
    spec = importlib.util.spec_from_file_location("race_simulation", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["race_simulation"] = module
    spec.loader.exec_module(module)
    world = module.World.draw(1)
    for name, strategy in module.STRATEGIES.items():
        layer, log_rate = strategy(world, "good", 0)
        assert abs(log_rate) <= np.log(4) + 1e-9, name
        assert world.value(layer, log_rate) > np.mean(world.contribution_L), name
