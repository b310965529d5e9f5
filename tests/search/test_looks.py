"""Stopping the evaluation of arms that have lost: how often wrongly, against whom, and what the race makes of it."""

from dataclasses import replace

import numpy as np
import pytest
from race_helpers import NUM_ITEMS, drive, make_candidates, make_config, make_runner, play

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.search.evidence import _noise_of_mean, check, gather, paired_gain
from autolayer.search.ledger import Ledger
from autolayer.search.looks import ALPHA, are_below, has_lost, looks, next_look, rival
from autolayer.search.race import Racing
from autolayer.search.rates import _observed
from autolayer.search.records import Run, Slot

SIMULATIONS, MANY = 4000, 640


def paired(rng, chance_I, shared):
    """Two arms of equal chances on every item; on a share of the items they have the same luck."""
    luck = rng.random((2, SIMULATIONS, len(chance_I)))
    luck[1] = np.where(rng.random(luck[0].shape) < shared, luck[0], luck[1])
    return (luck < chance_I).astype(float)


EQUAL_MEANS = {
    "coins": lambda rng: paired(rng, np.full(MANY, 0.5), 0.0),
    "coins of which most fall alike": lambda rng: paired(rng, np.full(MANY, 0.4), 0.9),
    "easy and hard items": lambda rng: paired(rng, rng.beta(0.3, 0.4, MANY), 0.5),
    "very rare": lambda rng: paired(rng, np.full(MANY, 0.02), 0.0),
    "very rare and alike": lambda rng: paired(rng, np.full(MANY, 0.02), 0.5),
    "nearly always": lambda rng: paired(rng, np.full(MANY, 0.98), 0.0),
    "a point for form": lambda rng: 0.1 + 0.9 * paired(rng, np.full(MANY, 0.05), 0.0),
    "unlike spreads": lambda rng: rng.normal(0, np.array([0.1, 2.0])[:, None, None], (2, SIMULATIONS, MANY)),
    "skewed": lambda rng: rng.exponential(1.0, (2, SIMULATIONS, MANY)),
    "heavy tails": lambda rng: rng.standard_t(3, (2, SIMULATIONS, MANY)),
}


@pytest.mark.parametrize("every", [32, 4], ids=["20 looks from 32 to 640", "20 looks from 32 to 108"])
@pytest.mark.parametrize("kind", EQUAL_MEANS)
def test_an_arm_that_is_no_worse_is_stopped_in_one_of_twenty_at_the_most(kind, every):
    rewards, others = EQUAL_MEANS[kind](np.random.default_rng(0))
    stopped = np.zeros(SIMULATIONS, dtype=bool)
    for end in range(32, 32 + 20 * every, every):
        stopped |= are_below(rewards[:, :end], others[:, :end], 0.05)
    assert stopped.mean() <= 0.05


def test_twenty_looks_of_an_ordinary_test_would_be_wrong_far_more_often():
    """That the simulation above can fail."""
    rewards, others = EQUAL_MEANS["coins"](np.random.default_rng(0))
    difference, stopped = rewards - others, np.zeros(SIMULATIONS, dtype=bool)
    for end in range(32, 672, 32):
        cut = difference[:, :end]
        stopped |= cut.mean(axis=1) < -1.645 * cut.std(axis=1) / np.sqrt(end)
    assert stopped.mean() > 0.15


def test_an_arm_that_is_far_worse_is_stopped():
    rng = np.random.default_rng(0)
    rewards, others = (rng.random((SIMULATIONS, 256)) < 0.3), (rng.random((SIMULATIONS, 256)) < 0.6)
    early, half = (are_below(rewards[:, :end] * 1.0, others[:, :end] * 1.0, ALPHA).mean() for end in looks(256))
    assert 0.5 < early < half and half > 0.9
    assert not are_below(others * 1.0, rewards * 1.0, 0.4).any(), "a better one is not"


@pytest.mark.parametrize("num_items", [128, 256])
def test_a_rival_that_is_the_luckiest_of_many_equal_ones_stops_few(num_items):
    """The race takes the best of what it has seen on these very items for the rival, so he is better there by luck."""
    rng = np.random.default_rng(0)
    for chance in (0.5, 0.02):
        arms = (rng.random((SIMULATIONS, 12, num_items)) < chance).astype(float)
        best = arms[np.arange(SIMULATIONS), arms.mean(axis=2).argmax(axis=1)]
        fresh = (rng.random((SIMULATIONS, num_items)) < chance).astype(float)
        stopped = [are_below(fresh[:, :end], best[:, :end], ALPHA) for end in looks(num_items)]
        assert np.any(stopped, axis=0).mean() <= 0.05


def test_few_items_that_differ_alike_are_no_proof():
    spread = [number / 31 for number in range(32)]
    assert not has_lost([value - 1e-3 for value in spread], spread)
    assert has_lost([value - 0.5 for value in spread], spread)
    assert not has_lost((), ()) and not has_lost((0.0,), (1.0,)) and not has_lost((1.0,) * 32, (1.0,) * 32)


def test_the_looks_double_and_leave_small_evaluations_whole():
    assert [looks(num) for num in (32, 63, 64, 128, 256)] == [(), (), (32,), (32, 64), (64, 128)]
    best = (1.0,) * 256
    assert [next_look((1.0,) * seen, best) for seen in (0, 64, 128, 256)] == [64, 128, 256, 256]
    assert next_look((0.0,) * 64, best) == 64 and next_look((0.0,) * 32, (1.0,) * 32) == 32


def result(rewards_I, layer=0, step=2, **changes):
    arm = Arm(layers=(layer,), learning_rate=1e-4, seed=0, step=step)
    return RungResult(arm=arm, select_rewards_I=tuple(rewards_I), train_rewards_P=(), **changes)


def test_the_rival_is_the_best_that_was_evaluated_in_whole():
    base_I = (0.0, 1.0, 0.0)
    assert rival(base_I, []) == base_I
    assert rival(base_I, [result((0.0, 0.0, 0.5)), result((1.0, 0.0, 0.0))]) == base_I, "of equals the first"
    assert rival(base_I, [result((1.0, 1.0, 0.0)), result((2.0, 2.0))]) == (1.0, 1.0, 0.0)


def test_a_run_has_the_same_rival_whoever_makes_it_and_whenever():
    contribution_L = np.array([0.7, 0.72, 0.71, 0.7, 0.69, 0.7])
    _, batches, answers, config, candidates, base_I = play(
        contribution_L, np.full(6, 0.7), 600, regret=0.0, noise=0.5, sd=0.05
    )
    fresh = next(number for number, batch in enumerate(batches) if batch[0].slot.seed == 1)
    assert fresh >= 3, "or nobody could have run ahead"

    def rivals(run, complete, partly=0):
        """Where so many batches are complete, and of the next one so many runs."""
        known = {each: answers[each] for batch in batches[:complete] for each in batch}
        known |= {each: answers[each] for each in batches[complete][:partly] if each != run}
        return Racing(config, candidates, base_I).rival(run, known)

    for number, batch in enumerate(batches[:fresh]):
        found = {rivals(batch[-1], number, partly) for partly in range(len(batch))}
        assert len(found) == 1
        assert Racing(config, candidates, base_I).rival(batch[-1], answers) in found, "also when all is over"
    assert rivals(batches[0][0], 0) == base_I != rivals(batches[2][0], 2)
    for run in batches[fresh]:
        ahead = {rivals(run, complete, partly) for complete in range(1, fresh + 1) for partly in (0, 1)}
        assert len(ahead) == 1 and ahead != {rivals(batches[fresh - 1][0], fresh - 1)}


def test_an_arm_that_collapses_is_stopped_cheaper_and_changes_nothing_else():
    contribution_L = np.array([0.2, 0.4, -3.0, 0.6, 1.2, 0.8])
    config, candidates = make_config(6, 150, regret=0.0), make_candidates(np.full(6, 0.7))
    run, base_I = make_runner(contribution_L, config)
    stopping, batches, answers = drive(config, candidates, run, base_I)
    whole, batches_of_whole, answers_of_whole = drive(
        config, candidates, lambda arm, to_step, rival_I: run(arm, to_step), base_I
    )
    lost = [each for each, answer in answers.items() if len(answer.select_rewards_I) < NUM_ITEMS]
    assert lost == [each for each in batches[0] if each.slot.layers == (2,)], "and it is not taken further"
    cut, full = answers[lost[0]], answers_of_whole[lost[0]]
    assert cut.select_rewards_I == full.select_rewards_I[:32]
    assert full.cost.generated_tokens - cut.cost.generated_tokens == config.eval_cost.generated_tokens * 96 / 128
    assert stopping.spent.generated_tokens < whole.spent.generated_tokens
    assert stopping.best == whole.best and batches == batches_of_whole
    rows, rows_of_whole = ({row.layers: row for row in each.ranking} for each in (stopping, whole))
    for layers, row in rows.items():
        if layers != (2,):
            assert row.rungs == rows_of_whole[layers].rungs
            assert row.probability_best == pytest.approx(rows_of_whole[layers].probability_best, abs=0.03)
    row = rows[(2,)]
    assert row.rungs[0].num_items == 32 and row.probability_best < 0.02
    assert (row.measured, 32) == (row.rungs[0].gain, len(cut.select_rewards_I))
    wide, narrow = (each.rungs[0].high - each.rungs[0].low for each in (row, rows_of_whole[(2,)]))
    assert 1.5 * narrow < wide < 3 * narrow


def test_a_part_of_the_items_is_held_against_the_same_items_of_the_base():
    base_I = tuple(np.r_[np.zeros(32), np.ones(96)])
    gain, error = paired_gain(result(np.tile([0.0, 1.0], 16)), base_I)
    assert gain == 0.5 and error == pytest.approx(np.std([0.0, 1.0] * 16, ddof=1) / np.sqrt(32))
    run = Run(slot=Slot(layers=(0,), seed=0), from_step=0, to_step=2)
    for seen in (32, 64, 128):
        check(run, result(np.zeros(seen)), base_I)
    for seen in (0, 31, 65, 127, 129):
        with pytest.raises(ValueError, match=f"{seen} rewards for 128 select items"):
            check(run, result(np.zeros(seen)), base_I)


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_unlike_lengths_have_a_covariance(seed):
    rng = np.random.default_rng(seed)
    common_I = rng.normal(0, 1, 128)
    whole = [common_I * rng.normal() + rng.normal(0, rng.uniform(0.01, 1), 128) for _ in range(24)]
    lengths = rng.choice([32, 64, 128], 24)
    noise = _noise_of_mean([row[:length] for row, length in zip(whole, lengths, strict=True)], 1.0)
    assert np.allclose(noise, noise.T) and np.linalg.eigvalsh(noise)[0] > 0
    full = np.flatnonzero(lengths == 128)
    alone = _noise_of_mean([whole[row] for row in full], 1.0)
    scale = np.sqrt(np.outer(np.diag(alone), np.diag(alone)))
    assert np.abs(noise[np.ix_(full, full)] - alone).max() < 0.1 * scale.max(), "the others are as they were"
    assert np.diag(noise)[full] == pytest.approx(np.diag(alone))


def test_rows_whose_first_items_say_something_else_have_a_covariance():
    """Two that are alike at first and opposite later, and one that ends where they are alike."""
    first, later = np.random.default_rng(0).normal(0, 1, 32), np.random.default_rng(1).normal(0, 2, 96)
    noise = _noise_of_mean([np.r_[first, later], np.r_[first, -later], first], 0.0)
    assert np.linalg.eigvalsh(noise)[0] > 0 and noise[0, 1] < 0 < noise[0, 2]
    assert np.diag(noise)[0] == pytest.approx(np.var(np.r_[first, later], ddof=1) / 128)


def test_the_covariance_of_unlike_lengths_is_that_of_their_means():
    rng = np.random.default_rng(0)
    means, noises = [], []
    for _ in range(3000):
        common_I = rng.normal(0, 1, 128)
        rows = [(common_I + rng.normal(0, 0.7, 128))[:length] for length in (32, 64, 128)]
        means.append([row.mean() for row in rows])
        noises.append(_noise_of_mean(rows, 0.0))
    expected, found = np.cov(np.array(means).T), np.mean(noises, axis=0)
    found[~np.eye(3, dtype=bool)] /= 0.9
    assert found == pytest.approx(expected, rel=0.12)


def test_the_posterior_takes_stopped_arms():
    base_I = tuple(np.random.default_rng(0).random(128))
    runs = [Run(slot=Slot(layers=(layer,), seed=0), from_step=0, to_step=2) for layer in range(3)]
    rewards = [np.random.default_rng(layer + 1).random(length) for layer, length in enumerate((128, 32, 64))]
    found = gather({run: result(r, run.slot.layers[0]) for run, r in zip(runs, rewards, strict=True)}, base_I)
    assert found.score_R == pytest.approx([r.mean() - np.mean(base_I[: len(r)]) for r in rewards])
    assert found.noise_R_R[1, 1] > found.noise_R_R[2, 2] > found.noise_R_R[0, 0]


def test_rates_are_compared_on_the_items_that_both_have():
    start, tried = (Run(slot=Slot(layers=(0,), rate_index=i, seed=0), from_step=0, to_step=2) for i in (0, 1))
    results = {start: result(np.r_[np.ones(32), np.zeros(96)]), tried: result(np.r_[np.ones(8), np.zeros(24)])}
    later = replace(tried, slot=replace(tried.slot, layers=(1,)), to_step=4)
    assert _observed(later, results) == [(0.0, 0.0), (0.0, -0.75)]


def test_what_was_saved_does_not_hide_that_runs_cost_more_than_planned():
    config, candidates = make_config(6, 100), make_candidates(np.full(6, 0.7))
    ledger = Ledger(config, candidates, NUM_ITEMS)
    first, second, third = (Run(slot=Slot(layers=(i,), seed=0), from_step=0, to_step=2) for i in (1, 2, 3))
    whole = (config.step_cost((1,)) * 2 + config.eval_cost) * 1.4
    cut = (config.step_cost((2,)) * 2 + config.eval_cost * 0.25) * 1.4
    answers = {first: result(np.zeros(128), 1, cost=whole), second: result(np.zeros(32), 2, cost=cut)}
    ledger.add([first, second], answers)
    assert ledger.spent == whole + cut
    planned = config.step_cost((3,)) * 2 + config.eval_cost
    assert ledger.cost([third]).generated_tokens == pytest.approx(1.4 * planned.generated_tokens)
    alone = Ledger(config, candidates, NUM_ITEMS)
    alone.add([second], answers)
    assert alone.cost([third]).generated_tokens == pytest.approx(1.4 * planned.generated_tokens), "none was whole"
    ledger.results[second] = replace(answers[second], cost=Cost())  # it did not say
    assert ledger.spent.generated_tokens == pytest.approx(
        (whole + config.step_cost((2,)) * 2 + config.eval_cost).generated_tokens
    )
