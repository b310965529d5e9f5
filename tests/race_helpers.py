"""Simulates learning curves, and runs a race on them to its end."""

from dataclasses import replace
from typing import Any

import numpy as np

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.search.race import Race
from autolayer.search.records import Candidate, RaceConfig, RaceOutcome

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
    """Returns a `run` function with saturating curves, and the base rewards. Arms share the prompts' noise."""
    contribution_L = np.asarray(contribution_L, dtype=float)
    base_I = np.random.default_rng(seed).normal(0.4, 0.3, NUM_ITEMS)

    def learned(step):
        return (1 - np.exp(-np.asarray(step) / config.total_steps / 0.15)) / (1 - np.exp(-1 / 0.15))

    def run(arm, to_step):
        layer = arm.layers[0]
        rng = np.random.default_rng([seed, layer, arm.seed, to_step, int(arm.learning_rate * 1e9)])
        value = full_gain * contribution_L[layer]
        steps = np.repeat(np.arange(arm.step, to_step), 4)
        prompts = np.random.default_rng([seed, arm.seed]).normal(0, 0.2, 4 * config.total_steps)
        train = value * learned(steps) + prompts[4 * arm.step : 4 * to_step] + rng.normal(0, noise / 2, len(steps))
        rewards_I = tuple(base_I + value * learned(to_step) + rng.normal(0, noise, NUM_ITEMS))
        cost = config.step_cost(arm.layers) * (to_step - arm.step) + config.eval_cost
        return RungResult(
            arm=replace(arm, step=to_step, checkpoint=f"arms/{arm.key}/{to_step}"),
            select_rewards_I=rewards_I,
            train_rewards_P=tuple(train),
            cost=cost,
        )

    return run, tuple(base_I)


def drive(config, candidates, run, base_I, fail=lambda each: None):
    """Runs a race to its end; returns the outcome, every batch and every answer."""
    of_layers = {c.layers: c for c in candidates}
    answers, batches, race = {}, [], Race(config, candidates, base_I)
    while not isinstance(due := race.due(answers), RaceOutcome):
        batches.append(due)
        results = {r: a for r, a in answers.items() if isinstance(a, RungResult)}
        finished = {}
        for each in due:
            before = [r.arm for e, r in results.items() if e.slot == each.slot]
            rate = config.rate_of(of_layers[each.slot.layers], each.slot.rate_index)
            arm = Arm(layers=each.slot.layers, learning_rate=rate, seed=each.slot.seed)
            arm = max(before, key=lambda a: a.step, default=arm)
            assert arm.step == each.from_step < each.to_step <= config.total_steps
            finished[each] = fail(each) or run(arm, each.to_step)
        answers |= finished
    return due, batches, answers


def play(contribution_L, predicted_L, budget_steps, noise=0.3, sd=0.2, fail=lambda each: None, **changes):
    config, candidates = make_config(len(contribution_L), budget_steps, **changes), make_candidates(predicted_L, sd)
    run, base_I = make_runner(contribution_L, config, noise, seed=config.seed)
    outcome, batches, answers = drive(config, candidates, run, base_I, fail)
    return outcome, batches, answers, config, candidates, base_I
