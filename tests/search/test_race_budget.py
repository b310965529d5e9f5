"""Tests the cost of a race on simulated learning curves: the planned ladder and what was spent."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from race_helpers import drive, make_candidates, make_config, make_runner, play

from autolayer.core.arms import Arm
from autolayer.core.budget import scout_steps
from autolayer.core.costs import Cost
from autolayer.search.ladder import (
    LADDER_SHARE,
    PlannedRung,
    average_step_cost,
    ladder_cost,
    middle_candidate,
    plan_ladder,
)
from autolayer.search.race_state import RaceState


@pytest.mark.parametrize("case", range(40))
def test_never_exceeds_the_budget_in_either_component(case):
    rng = np.random.default_rng(case)
    num_layers = int(rng.choice([1, 2, 3, 5, 12, 28, 64]))
    total = int(rng.choice([10, 60, 400]))
    budget_steps = float(rng.choice([0, 0.5, 2, 7, 15, 70, 250, 1500]))
    budget = Cost(generated_tokens=100 * budget_steps * rng.uniform(0.2, 5), layer_tokens=1000 * budget_steps)
    contribution_L, predicted_L = rng.normal(0.7, 0.25, num_layers), rng.normal(0.7, 0.2, num_layers)
    outcome, batches, answers, config, candidates, _ = play(
        contribution_L, predicted_L, 0, seed=case, total_steps=total, budget=budget, regret=0.005, confidence=0.999,
    )  # fmt: skip
    assert outcome.spent.fits(budget * (1 + 1e-9))
    assert ladder_cost(config, plan_ladder(config, candidates).rungs, 0, average_step_cost(config, candidates)).fits(
        budget
    )
    actual = sum((answer.cost for answer in answers.values()), Cost())
    assert actual.generated_tokens == pytest.approx(outcome.spent.generated_tokens)
    state = RaceState(config, candidates)
    state.add(answers, answers)  # in the order of the race
    assert state.planned_cost(state.results).layer_tokens == pytest.approx(actual.layer_tokens), (
        "as planned, to the last"
    )
    assert len(answers) == len(list(itertools.chain(*batches))), "a run was asked for twice"
    assert sum(row.probability_best for row in outcome.ranking) == pytest.approx(1)
    assert sorted(row.layers for row in outcome.ranking) == [c.layers for c in candidates]
    for batch in batches:
        assert len({run.to_step for run in batch}) == 1, "a batch is compared at one rung"


def test_runs_that_cost_more_than_planned_shrink_the_rest():
    contribution_L = np.full(12, 0.7)
    config, candidates = make_config(12, 60, regret=0.0), make_candidates(contribution_L)
    run, base_I = make_runner(contribution_L, config)

    def dear(arm, to_step):
        result = run(arm, to_step)
        return replace(result, cost=result.cost * 1.4)

    outcome, batches, _ = drive(config, candidates, dear, base_I)
    assert len(batches) > 1
    assert outcome.spent.fits(config.budget)


def test_what_came_before_and_was_slower_than_the_race_shortens_it():
    contribution_L = np.full(12, 0.7)
    spent = []
    for seconds in (0.0, 10.0, 40.0):  # for 10 s of work at the race's 1000 layer-tokens a second
        earlier = Cost(layer_tokens=10_000.0, seconds=seconds)
        config, candidates = make_config(12, 60, regret=0.0, earlier=earlier), make_candidates(contribution_L)
        run, base_I = make_runner(contribution_L, config)

        def timed(arm, to_step, run=run):
            result = run(arm, to_step)
            return replace(result, cost=replace(result.cost, seconds=result.cost.layer_tokens / 1000))

        spent.append(drive(config, candidates, timed, base_I)[0].spent)
        assert (spent[-1] + Cost(layer_tokens=max(0.0, 1000 * seconds - 10_000))).fits(config.budget)
    assert spent[0] == spent[1] and spent[2].layer_tokens < spent[1].layer_tokens


def test_middle_and_a_random_layer_race_whatever_is_predicted():
    predicted_L = np.r_[np.full(18, 0.2), np.linspace(0.8, 1.2, 18)]
    randoms = set()
    for seed in range(20):
        config, candidates = make_config(36, 60, seed=seed), make_candidates(predicted_L)
        ladder = plan_ladder(config, candidates)
        layers = {c.layers[0] for c in ladder.first}
        assert middle_candidate(config, candidates).layers == (18,) and 18 in layers and 35 in layers
        assert len(layers) == ladder.rungs[0].num_layers
        randoms |= {layer for layer in layers if layer < 18}
    assert len(randoms) > 3


def test_more_money_means_more_layers_and_then_longer_runs():
    budgets = (40, 160, 640, 2560)
    ladders = [plan_ladder(make_config(36, steps, total_steps=400), make_candidates(np.ones(36))) for steps in budgets]
    widths, ends = [x.rungs[0].num_layers for x in ladders], [x.rungs[-1].step for x in ladders]
    assert widths == sorted(widths) and len(set(widths)) == 3 and widths[-2:] == [36, 36]
    assert ends == sorted(ends) and ends[-2] < ends[-1]


def test_a_pretrained_model_races_fewer_layers_for_longer():
    plans = {}
    for steps, total in itertools.product((20, 100, 400, 1600), (32, 400)):
        for pretrained in (False, True):
            config = make_config(28, steps * total / 400, total_steps=total, is_pretrained=pretrained)
            plans[steps, total, pretrained] = plan_ladder(config, make_candidates(np.ones(28))).rungs
        small, large = plans[steps, total, False], plans[steps, total, True]
        assert [(rung.num_layers <= 4 or rung.step >= total / 16) for rung in large[:1]] == [True] * len(large[:1])
        assert not small or (large[0].num_layers, -large[0].step) <= (small[0].num_layers, -small[0].step)
    assert plans[400, 400, True][0].num_layers < plans[400, 400, False][0].num_layers == 28


@pytest.mark.parametrize("num_layers", [1, 2, 64])
def test_no_money_no_run(num_layers):
    predicted_L = np.linspace(0.3, 0.9, num_layers)
    outcome, batches, *_ = play(predicted_L, predicted_L, 0)
    assert batches == [] and outcome.best == (num_layers - 1,)
    assert outcome.verdict == ("clear" if num_layers == 1 else "budget_spent")
    assert outcome.winner == Arm(layers=outcome.best, learning_rate=1e-4, seed=0)
    row = outcome.ranking[0]
    assert row.measured is None and row.rungs == ()


def test_a_first_rung_of_dear_layers_stays_within_the_budget():
    predicted_L = np.linspace(1, 0, 28)  # the best predictions are the lowest layers, which cost the most
    for budget_steps in np.arange(0.5, 12, 0.5):
        outcome, batches, _, config, *_ = play(np.full(28, 0.7), predicted_L, budget_steps)
        assert outcome.spent.fits(config.budget)
        assert batches or budget_steps < 3


@pytest.mark.parametrize("budget_steps", [12, 20, 30, 60, 200])
@pytest.mark.parametrize("num_layers", [5, 12, 36])
def test_a_race_is_first_wide_and_never_shorter_than_a_scout(num_layers, budget_steps):
    config, candidates = make_config(num_layers, budget_steps, total_steps=60), make_candidates(np.ones(num_layers))
    ladder = plan_ladder(config, candidates)
    first = ladder.rungs[0]
    assert first.step >= scout_steps(60) == 2
    assert ladder_cost(config, ladder.rungs, 0, average_step_cost(config, candidates)).fits(config.budget)
    if first.num_layers < num_layers:  # one more arm would not have fitted, whatever the ladder's length
        wider = [
            PlannedRung(step=2, num_layers=first.num_layers + 1),
            PlannedRung(step=4, num_layers=first.num_layers // 2 + 1),
        ]
        step_cost = sum((config.step_cost(c.layers) for c in candidates), Cost()) * (1 / num_layers)
        assert not ladder_cost(config, wider, 0, step_cost).fits(config.budget * LADDER_SHARE)
    else:
        assert budget_steps >= 20
