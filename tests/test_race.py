"""The race on simulated learning curves: what it may cost, whom it finds, and what it says about it."""

import importlib.util
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autolayer.arms import Arm, RungResult
from autolayer.costs import Cost
from autolayer.errors import AutolayerError, ConfigError
from autolayer.plan import scout_steps
from autolayer.search.evidence import gather
from autolayer.search.ledger import Ledger
from autolayer.search.outcome import indistinguishable
from autolayer.search.plan import LADDER_SHARE, Rung, ladder_cost, middle, plan
from autolayer.search.posterior import infer
from autolayer.search.race import Racing, race
from autolayer.search.rates import learning_rate
from autolayer.search.records import Candidate, RaceConfig, Run, SearchError, Slot

NUM_ITEMS = 128


def make_candidates(predicted, sd=0.2):
    return [
        Candidate(layers=(layer,), predicted=float(p), predicted_sd=sd, learning_rate=1e-4)
        for layer, p in enumerate(predicted)
    ]


def make_config(num_layers, budget_steps, **changes):
    fields: dict[str, Any] = {
        "seed": 0,
        "num_layers": num_layers,
        "total_steps": 100,
        "budget": Cost(generated_tokens=100.0 * budget_steps, layer_tokens=1000.0 * budget_steps),
        "step_cost": lambda layers: Cost(
            generated_tokens=100.0, layer_tokens=600.0 + 400.0 * (1 - layers[0] / num_layers)
        ),
        "eval_cost": Cost(generated_tokens=50.0, layer_tokens=200.0),
    }
    return RaceConfig(**(fields | changes))


def make_runner(contribution_L, config, noise=0.3, full_gain=0.4, seed=0):
    """Saturating curves; items keep most of their luck, so arms are paired."""
    contribution_L = np.asarray(contribution_L, dtype=float)
    base_I = np.random.default_rng(seed).normal(0.4, 0.3, NUM_ITEMS)
    payers: dict[int, str] = {}  # of the first rollouts, by seed

    def learned(step):
        return (1 - np.exp(-np.asarray(step) / config.total_steps / 0.15)) / (1 - np.exp(-1 / 0.15))

    def run(arm, to_step):
        layer = arm.layers[0]
        rng = np.random.default_rng([seed, layer, arm.seed, to_step, int(arm.learning_rate * 1e9)])
        value = full_gain * contribution_L[layer]
        steps = np.repeat(np.arange(arm.step, to_step), 4)
        prompts = np.random.default_rng([seed, arm.seed]).normal(0, 0.2, 4 * config.total_steps)
        train = value * learned(steps) + prompts[4 * arm.step : 4 * to_step] + rng.normal(0, noise / 2, len(steps))
        cost = config.step_cost(arm.layers) * (to_step - arm.step) + config.eval_cost
        if arm.step == 0 and payers.setdefault(arm.seed, arm.key) != arm.key:
            cost -= config.first_rollouts
        return RungResult(
            arm=replace(arm, step=to_step, checkpoint=f"arms/{arm.key}/{to_step}"),
            select_rewards_I=tuple(base_I + value * learned(to_step) + rng.normal(0, noise, NUM_ITEMS)),
            train_rewards_P=tuple(train),
            cost=cost,
        )

    return run, tuple(base_I)


def drive(config, candidates, run, base_I, fail=lambda each: None):
    """Plays a race to its end; returns the outcome and every batch."""
    of_layers = {c.layers: c for c in candidates}
    answers, batches = {}, []
    running = race(config, candidates, base_I)
    try:
        batch = next(running)
        while True:
            batches.append(batch)
            results = {r: a for r, a in answers.items() if isinstance(a, RungResult)}
            for each in batch:
                before = [r.arm for e, r in results.items() if e.slot == each.slot]
                rate = learning_rate(config, of_layers[each.slot.layers], each, results)
                arm = Arm(layers=each.slot.layers, learning_rate=rate, seed=each.slot.seed)
                arm = max(before, key=lambda a: a.step, default=arm)
                assert arm.step == each.from_step < each.to_step <= config.total_steps
                answers[each] = fail(each) or run(arm, each.to_step)
            batch = running.send({each: answers[each] for each in batch})
    except StopIteration as stop:
        return stop.value, batches, answers


def play(contribution_L, predicted_L, budget_steps, noise=0.3, sd=0.2, fail=lambda each: None, **changes):
    config, candidates = make_config(len(contribution_L), budget_steps, **changes), make_candidates(predicted_L, sd)
    run, base_I = make_runner(contribution_L, config, noise, seed=config.seed)
    outcome, batches, answers = drive(config, candidates, run, base_I, fail)
    return outcome, batches, answers, config, candidates, base_I


@pytest.mark.parametrize("case", range(40))
def test_never_exceeds_the_budget_in_either_component(case):
    rng = np.random.default_rng(case)
    num_layers = int(rng.choice([1, 2, 3, 5, 12, 28, 64]))
    total = int(rng.choice([10, 60, 400]))
    budget_steps = float(rng.choice([0, 0.5, 2, 7, 15, 70, 250, 1500]))
    budget = Cost(generated_tokens=100 * budget_steps * rng.uniform(0.2, 5), layer_tokens=1000 * budget_steps)
    shared = Cost(generated_tokens=100.0, layer_tokens=200.0) if case % 2 else Cost()
    contribution_L, predicted_L = rng.normal(0.7, 0.25, num_layers), rng.normal(0.7, 0.2, num_layers)
    outcome, batches, answers, config, candidates, _ = play(
        contribution_L, predicted_L, 0, seed=case, total_steps=total, budget=budget, regret=0.005, confidence=0.999,
        first_rollouts=shared,
    )  # fmt: skip
    assert outcome.spent.fits(budget * (1 + 1e-9))
    assert plan(config, candidates).planned_cost.fits(budget)
    actual = sum((answer.cost for answer in answers.values()), Cost())
    assert actual.generated_tokens == pytest.approx(outcome.spent.generated_tokens)
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


def test_same_records_same_decision():
    predicted_L = np.linspace(0.4, 1.0, 10)
    first = play(predicted_L, predicted_L, 60)
    second = play(predicted_L, predicted_L, 60)
    assert first[0] == second[0] and first[1] == second[1]
    outcome, batches, answers, config, candidates, base_I = first
    assert Racing(config, candidates, base_I).due({}) == batches[0]
    assert Racing(config, candidates, base_I).due(dict(reversed(answers.items()))) == outcome
    for number, run in enumerate(batches[1]):  # in whatever order a batch comes in, the rest of it is still wanted
        known = {r: answers[r] for r in (*batches[0], run)}
        assert Racing(config, candidates, base_I).due(known) == tuple(r for r in batches[1] if r != batches[1][number])


def test_a_race_can_be_taken_up_at_every_point():
    predicted_L = np.linspace(0.4, 1.0, 8)
    outcome, batches, answers, config, candidates, base_I = play(predicted_L, predicted_L, 150, regret=0.0)
    known = {}
    for batch in batches:
        for number, run in enumerate(batch):
            assert Racing(config, candidates, base_I).due(known) == batch[number:]
            known[run] = answers[run]
    assert Racing(config, candidates, base_I).due(known) == outcome


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


def test_a_tie_goes_to_the_higher_layer():
    contribution_L = np.array([0.1, 0.1, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1])
    outcome, *_ = play(contribution_L, contribution_L, 2000, noise=0.05, sd=0.05, regret=0.1)
    assert outcome.verdict == "tied" and outcome.best == (4,)
    assert set(outcome.tied) <= {(2,), (3,)} and outcome.tied
    assert outcome.expected_regret <= 0.1 and "cannot be told apart" in outcome.stop_reason


def test_where_nothing_was_run_what_the_prediction_cannot_tell_apart_is_tied():
    alike, *_ = play(np.full(4, 0.7), np.full(4, 0.7), 0)
    assert (alike.verdict, alike.best, set(alike.tied)) == ("budget_spent", (3,), {(0,), (1,), (2,)})
    assert "cannot be told apart from" in alike.stop_reason
    worse, *_ = play(np.full(4, 0.7), [0.1, 0.7, 0.7, 0.7], 0, sd=0.01)
    assert worse.best == (3,) and (1,) in worse.tied and (2,) in worse.tied


def test_middle_and_a_random_layer_race_whatever_is_predicted():
    predicted_L = np.r_[np.full(18, 0.2), np.linspace(0.8, 1.2, 18)]
    randoms = set()
    for seed in range(20):
        config, candidates = make_config(36, 60, seed=seed), make_candidates(predicted_L)
        layout = plan(config, candidates)
        layers = {c.layers[0] for c in layout.first}
        assert middle(config, candidates).layers == (18,) and 18 in layers and 35 in layers
        assert len(layers) == layout.rungs[0].num_layers
        randoms |= {layer for layer in layers if layer < 18}
    assert len(randoms) > 3


def test_more_money_means_more_layers_and_then_longer_runs():
    budgets = (40, 160, 640, 2560)
    layouts = [plan(make_config(36, steps, total_steps=400), make_candidates(np.ones(36))) for steps in budgets]
    widths, ends = [x.rungs[0].num_layers for x in layouts], [x.rungs[-1].step for x in layouts]
    assert widths == sorted(widths) and len(set(widths)) == 3 and widths[-2:] == [36, 36]
    assert ends == sorted(ends) and ends[-2] < ends[-1]


@pytest.mark.parametrize("num_layers", [1, 2, 64])
def test_no_money_no_run(num_layers):
    predicted_L = np.linspace(0.3, 0.9, num_layers)
    outcome, batches, *_ = play(predicted_L, predicted_L, 0)
    assert batches == [] and outcome.best == (num_layers - 1,)
    assert outcome.verdict == ("clear" if num_layers == 1 else "budget_spent")
    assert outcome.winner == Arm(layers=outcome.best, learning_rate=1e-4, seed=0)
    row = outcome.ranking[0]
    assert row.measured is None and row.measured_steps is None and row.rungs == ()


def test_a_first_rung_of_dear_layers_stays_within_the_budget():
    predicted_L = np.linspace(1, 0, 28)  # the best predictions are the lowest layers, which cost the most
    for budget_steps in np.arange(0.5, 12, 0.5):
        outcome, *_, config, _, _ = play(np.full(28, 0.7), predicted_L, budget_steps)
        assert outcome.spent.fits(config.budget)


def test_a_failed_run_leaves_no_rollouts_for_the_others():
    shared = Cost(generated_tokens=60.0, layer_tokens=300.0)
    config, candidates = make_config(6, 100, first_rollouts=shared), make_candidates(np.full(6, 0.7))
    ledger = Ledger(config, candidates)
    first, second, third = (Run(slot=Slot(layers=(i,), seed=0), from_step=0, to_step=2) for i in (1, 2, 3))
    one, two, three = (config.step_cost((i,)) * 2 + config.eval_cost for i in (1, 2, 3))
    assert ledger.cost([first, second, third]) == one + two + three - shared * 2
    ledger.add([first], {first: "diverged"})
    assert ledger.spent == one and ledger.cost([second, third]) == two + three - shared
    result = RungResult(
        arm=Arm(layers=(2,), learning_rate=1e-4, seed=0, step=2), select_rewards_I=(0.0,), train_rewards_P=(), cost=two
    )
    ledger.add([second], {second: result})
    assert ledger.spent == one + two and ledger.cost([third]) == three - shared
    other = Run(slot=Slot(layers=(3,), seed=1), from_step=0, to_step=2)  # other prompts
    on = Run(slot=second.slot, from_step=2, to_step=4)
    assert ledger.cost([other]) == three and ledger.cost([on]) == two


@pytest.mark.parametrize("budget_steps", [12, 20, 30, 60, 200])
@pytest.mark.parametrize("num_layers", [5, 12, 36])
def test_a_race_is_first_wide_and_never_shorter_than_a_scout(num_layers, budget_steps):
    config, candidates = make_config(num_layers, budget_steps, total_steps=60), make_candidates(np.ones(num_layers))
    layout = plan(config, candidates)
    first = layout.rungs[0]
    assert first.step >= scout_steps(60) == 2
    assert layout.planned_cost.fits(config.budget)
    if first.num_layers < num_layers:  # one more arm would not have fitted, whatever the ladder's length
        wider = [Rung(step=2, num_layers=first.num_layers + 1), Rung(step=4, num_layers=first.num_layers // 2 + 1)]
        step_cost = sum((config.step_cost(c.layers) for c in candidates), Cost()) * (1 / num_layers)
        assert not ladder_cost(config, wider, 0, step_cost).fits(config.budget * LADDER_SHARE)
    else:
        assert budget_steps >= 20


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
    """What all arms of a seed share before they have made a step tells nothing about them."""
    config, candidates = make_config(4, 100), make_candidates(np.full(4, 0.7))
    run, base_I = make_runner([0.0, 1.0, 0.5, 0.2], config)
    runs = [Run(slot=Slot(layers=c.layers, seed=0), from_step=0, to_step=2) for c in candidates]
    results = {each: run(Arm(layers=each.slot.layers, learning_rate=1e-4, seed=0), 2) for each in runs}
    found = gather(results, base_I)
    changed = {
        each: replace(result, train_rewards_P=(9.0,) * 4 + result.train_rewards_P[4:])
        for each, result in results.items()
    }
    again = gather(changed, base_I)
    assert len(found.rows) == 8 and {row.start for row in found.rows} == {1, 2}
    assert again.score_R == pytest.approx(found.score_R) and again.noise_R_R == pytest.approx(found.noise_R_R)


def test_two_candidates_and_layer_sets():
    config = make_config(8, 100)
    candidates = [
        Candidate(layers=layers, predicted=0.6, predicted_sd=0.2, learning_rate=1e-4) for layers in ((0, 1), (6, 7))
    ]
    run, base_I = make_runner([0.2, 0, 0, 0, 0, 0, 1.2, 0], config, noise=0.1)
    outcome, *_ = drive(config, candidates, run, base_I)
    assert outcome.best == (6, 7)


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
    with pytest.raises(SearchError, match="out of memory") as caught:
        play(np.ones(6), np.ones(6), 150, fail=lambda each: "out of memory")
    assert isinstance(caught.value, AutolayerError)


def test_rates_stay_in_the_span_and_fixed_ones_are_kept():
    contribution_L = np.full(6, 0.7)
    _, _, answers, *_ = play(contribution_L, contribution_L, 900, regret=0.0)
    rates = {a.arm.learning_rate for a in answers.values()}
    assert len(rates) > 1 and all(1e-4 / 4 <= rate <= 1e-4 * 4 for rate in rates)
    by_slot = {}
    for run, answer in answers.items():
        key = (run.slot.layers, run.slot.rate_index)
        assert by_slot.setdefault(key, answer.arm.learning_rate) == answer.arm.learning_rate
    _, _, answers, *_ = play(contribution_L, contribution_L, 900, regret=0.0, fixed_rate=True)
    assert {a.arm.learning_rate for a in answers.values()} == {1e-4}


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
    assert row.measured == pytest.approx(gain_I.mean()) and row.measured_steps == run.to_step
    assert row.measured_high - row.measured == pytest.approx(1.96 * gain_I.std(ddof=1) / np.sqrt(len(gain_I)))


def test_without_evidence_the_posterior_is_the_prior():
    config, candidates = make_config(4, 10), make_candidates([0.2, 0.4, 0.6, 0.8], sd=0.1)
    view = infer(config, candidates, gather({}, (0.0, 1.0)), [True] * 4, num_draws=20_000)
    assert view.expected_C == pytest.approx(np.array([0.36, 0.46, 0.54, 0.64]), abs=0.06)
    assert np.all(np.diff(view.expected_C) > 0) and view.ranked[0] == 3
    assert view.draws_D_C.mean(axis=0) == pytest.approx(view.expected_C, abs=0.01)
    assert 3 in indistinguishable(config, view, 3)


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


def test_equal_rewards_everywhere_are_no_evidence():
    config, candidates = make_config(6, 40), make_candidates(np.linspace(0.5, 0.9, 6))

    def run(arm, to_step):
        return RungResult(
            arm=replace(arm, step=to_step), select_rewards_I=(1.0,) * 16, train_rewards_P=(1.0,) * 4, cost=Cost()
        )

    outcome, *_ = drive(config, candidates, run, (1.0,) * 16)
    assert np.isfinite(outcome.expected_regret) and outcome.spent.fits(config.budget)


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


def test_settings_that_cannot_work_are_all_named():
    with pytest.raises(ConfigError, match="total_steps 0.*confidence 1.5"):
        make_config(4, 10, total_steps=0, confidence=1.5)


def test_the_simulation_in_the_examples_runs():
    path = Path(__file__).parents[1] / "examples" / "benchmarks" / "race_simulation.py"
    spec = importlib.util.spec_from_file_location("race_simulation", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["race_simulation"] = module
    spec.loader.exec_module(module)
    world = module.World.draw(1)
    for strategy in module.STRATEGIES.values():
        layer, log_rate = strategy(world, "good", 0)
        assert world.best - world.value(layer, log_rate) >= 0
