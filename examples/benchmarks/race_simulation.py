"""Simulates, without a model, which way of spending a small budget of short runs finds the best layer.

    python examples/benchmarks/race_simulation.py --studies 1000 --seed 0

Hardware: one CPU core, 3 to 8 minutes. Expected at that size, standard error .005 to .008:

    strategy           good prior  useless  reversed
    race                  .134       .365     .659
    Optuna ASHA           .174       .348     .576
    Optuna Hyperband      .167       .349     .582
    Optuna TPE            .177       .343     .567
    uniform               .358       .385     .416     (does not look at the prior)
    prior alone           .152       .440     .737

`--strategies race "race, one rate" --budget 1` tells whether the race's second and third learning rates pay.

The curves, noise and rate effects are guesses (written out in `World`), not measurements: the table compares strategies
and promises no regret. Early values tell more here than on LayerBench, which the race's model now follows: so it stays
with a wrong prior for longer than is right in this world. At a quarter of one run short runs drown in noise, so no
strategy gets far from its prior.

Every strategy gets the same budget in steps, an evaluation counted as one step, and the same prior. Regret is what the
chosen layer at the chosen learning rate reaches after a full run, against the best layer at its best rate, in
contribution (1 = the gain of full-parameter RL).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.search.ladder import plan_ladder
from autolayer.search.race import Race
from autolayer.search.records import Candidate, RaceConfig, RaceOutcome, Run

NUM_SELECT, NUM_PROMPTS, GROUP_SIZE = 128, 16, 8
PRIORS = ("good", "useless", "reversed")
RATE = 1e-5
"""Starting rate of every layer; only ratios to it matter."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One model and task: what every layer would reach, and how its learning curve gets there."""

    total_steps: int
    budget_steps: int
    contribution_L: np.ndarray
    """At the layer's best rate: half smooth in depth, half its own."""
    best_log_rate_L: np.ndarray
    """Natural logarithm of the best rate over the starting rate."""
    rate_loss: float
    """Contribution lost at a factor of e from the best rate; grows with the square of the logarithm."""
    time_constant_L: np.ndarray
    """Share of the full run in which a layer's curve saturates."""
    full_gain: float
    item_base_I: np.ndarray
    """Base model's success probability per `select` item."""
    seed: int

    @staticmethod
    def draw(seed: int, budget: float = 0.25) -> World:
        rng = np.random.default_rng(seed)
        num_layers = int(rng.choice([8, 12, 16, 24, 28, 36]))
        total_steps = int(rng.choice([300, 400]))
        depth_L = np.arange(num_layers) / num_layers
        covariance_L_L = np.exp(-(((depth_L[:, None] - depth_L) / 0.2) ** 2)) + 1e-6 * np.eye(num_layers)
        smooth_L = np.linalg.cholesky(covariance_L_L) @ rng.standard_normal(num_layers)
        own_L = rng.standard_normal(num_layers)
        return World(
            total_steps=total_steps,
            budget_steps=round(budget * 0.7 * total_steps),
            contribution_L=0.7 + 0.25 * (smooth_L + own_L) / math.sqrt(2),
            best_log_rate_L=rng.normal(0, math.log(1.8), num_layers),
            rate_loss=0.1,
            time_constant_L=np.exp(rng.normal(math.log(0.12), 0.4, num_layers)),
            full_gain=float(rng.uniform(0.2, 0.4)),
            item_base_I=rng.beta(0.8, 1.0, NUM_SELECT),
            seed=seed,
        )

    def value(self, layer: int, log_rate: float) -> float:
        """Contribution after the full run."""
        loss = self.rate_loss * (log_rate - self.best_log_rate_L[layer]) ** 2
        return float(self.contribution_L[layer] - loss)

    @property
    def best(self) -> float:
        return float(self.contribution_L.max())

    def gain(self, layer: int, log_rate: float, seed: int, steps: np.ndarray) -> np.ndarray:
        """True gain in reward after `steps`, of one training run."""
        luck = np.random.default_rng([self.seed, 1, layer, seed]).normal(0, 0.07)
        constant = self.time_constant_L[layer]
        learned = (1 - np.exp(-steps / self.total_steps / constant)) / (1 - np.exp(-1 / constant))
        return self.full_gain * (self.value(layer, log_rate) + luck) * learned

    def evaluate(self, layer: int, log_rate: float, seed: int, step: int) -> np.ndarray:
        """Rewards on `select`. Half of the items keep their sampling noise whatever the policy."""
        gain = self.gain(layer, log_rate, seed, np.array([step]))[0]
        own = np.random.default_rng([self.seed, 2, layer, seed, step, int(1e6 * abs(log_rate))])
        shared_I = np.random.default_rng([self.seed, 3]).random(NUM_SELECT)
        noise_I = np.where(own.random(NUM_SELECT) < 0.5, shared_I, own.random(NUM_SELECT))
        return (noise_I < self.item_base_I + gain * 4 * self.item_base_I * (1 - self.item_base_I) * 1.5).astype(float)

    @property
    def base_select(self) -> np.ndarray:
        return (np.random.default_rng([self.seed, 3]).random(NUM_SELECT) < self.item_base_I).astype(float)

    def rollouts(self, layer: int, log_rate: float, seed: int, start: int, end: int) -> np.ndarray:
        """Mean reward of each training group on the way from `start` to `end`."""
        own = np.random.default_rng([self.seed, 4, layer, seed, start, int(1e6 * abs(log_rate))])
        rewards = []
        for step in range(start, end):
            base_P = np.random.default_rng([self.seed, 5, seed, step]).beta(0.8, 1.0, NUM_PROMPTS)
            gain = self.gain(layer, log_rate, seed, np.array([step]))[0]
            chance_P = np.clip(base_P + gain * 6 * base_P * (1 - base_P), 0, 1)
            rewards.append(own.binomial(GROUP_SIZE, chance_P) / GROUP_SIZE)
        return np.concatenate(rewards)

    def candidates(self, prior: str) -> list[Candidate]:
        """The prediction: correlated with the truth by .7, not at all, or by -.7, and always equally sure of itself."""
        rng = np.random.default_rng([self.seed, 6])
        correlation = {"good": 0.7, "useless": 0.0, "reversed": -0.7}[prior]
        spread_L = self.contribution_L - self.contribution_L.mean()
        error_L = rng.standard_normal(len(spread_L)) * spread_L.std() * math.sqrt(1 - correlation**2)
        predicted_L = 0.7 + 0.7 * (correlation * spread_L + error_L)
        return [
            Candidate(layers=(layer,), predicted=float(p), predicted_sd=0.18, learning_rate=RATE)
            for layer, p in enumerate(predicted_L)
        ]

    def config(self, seed: int, *, fixed_rate: bool = False) -> RaceConfig:
        return RaceConfig(
            seed=seed,
            fixed_rate=fixed_rate,
            num_layers=len(self.contribution_L),
            total_steps=self.total_steps,
            budget=Cost(generated_tokens=float(self.budget_steps), layer_tokens=float(self.budget_steps)),
            step_cost=lambda layers: Cost(generated_tokens=1.0, layer_tokens=1.0),
            eval_cost=Cost(generated_tokens=1.0, layer_tokens=0.3),
        )

    def run(self, arm: Arm, from_step: int, to_step: int) -> RungResult:
        layer, log_rate = int(arm.layers[0]), math.log(arm.learning_rate / RATE)
        return RungResult(
            arm=Arm(layers=arm.layers, learning_rate=arm.learning_rate, seed=arm.seed, step=to_step, checkpoint="-"),
            select_rewards_I=tuple(self.evaluate(layer, log_rate, arm.seed, to_step)),
            train_rewards_P=tuple(self.rollouts(layer, log_rate, arm.seed, from_step, to_step)),
            cost=Cost(generated_tokens=to_step - from_step + 1.0, layer_tokens=to_step - from_step + 0.3),
        )


def simulate(
    race: Race, config: RaceConfig, candidates: list[Candidate], run: Callable[..., RungResult]
) -> RaceOutcome:
    """Drives a race without a study."""
    answers: dict[Run, RungResult | str] = {}
    of_layers = {candidate.layers: candidate for candidate in candidates}
    while not isinstance(due := race.due(answers), RaceOutcome):
        for each in due:
            rate = config.rate_of(of_layers[each.slot.layers], each.slot.rate_index)
            arm = Arm(layers=each.slot.layers, learning_rate=rate, seed=each.slot.seed, step=each.from_step)
            answers[each] = run(arm, each.from_step, each.to_step)
    return due


def run_race(world: World, prior: str, seed: int, *, fixed_rate: bool = False) -> tuple[int, float]:
    config, candidates = world.config(seed, fixed_rate=fixed_rate), world.candidates(prior)
    outcome = simulate(Race(config, candidates, tuple(world.base_select)), config, candidates, world.run)
    return outcome.best[0], math.log(outcome.winner.learning_rate / RATE)


def run_prior(world: World, prior: str, seed: int) -> tuple[int, float]:
    return max(world.candidates(prior), key=lambda c: c.predicted).layers[0], 0.0


def run_uniform(world: World, prior: str, seed: int) -> tuple[int, float]:
    """All layers equally long, best predictions first if there are more layers than the budget has room for."""
    ranked = sorted(world.candidates(prior), key=lambda c: -c.predicted)
    num_arms = min(len(ranked), world.budget_steps // 2)
    steps = world.budget_steps // num_arms - 1
    scores = {c.layers[0]: world.evaluate(c.layers[0], 0.0, seed, steps).mean() for c in ranked[:num_arms]}
    return max(scores, key=lambda layer: scores[layer]), 0.0


def run_optuna(
    pruner: Callable[[int, int], optuna.pruners.BasePruner] | None, world: World, prior: str, seed: int
) -> tuple[int, float]:
    """Layer and rate as parameters; the predictions are enqueued, best first, at their starting rates.

    Without a pruner every trial runs as long as the race's second rung. With one it runs up the race's rungs.
    """
    candidates, config = world.candidates(prior), world.config(seed)
    rungs = [rung.step for rung in plan_ladder(config, candidates).rungs] or [1]
    resource = [rungs[min(1, len(rungs) - 1)]] if pruner is None else rungs
    sampler = optuna.samplers.TPESampler(seed=seed)
    chosen = pruner(resource[0], resource[-1]) if pruner else optuna.pruners.NopPruner()
    # Hyperband deals out its brackets by the study's name, which is random unless given.
    study = optuna.create_study(study_name=str(seed), direction="maximize", sampler=sampler, pruner=chosen)
    ranked = sorted(candidates, key=lambda c: -c.predicted)
    for candidate in ranked[: max(1, len(ranked) // 2)]:
        study.enqueue_trial({"layer": candidate.layers[0], "log_rate": 0.0})
    left = float(world.budget_steps)
    seen: list[tuple[int, float, int, float]] = []
    while left >= resource[0] + 1:
        trial = study.ask()
        layer = trial.suggest_categorical("layer", list(range(len(candidates))))
        log_rate = trial.suggest_float("log_rate", -math.log(4), math.log(4))
        step, score, pruned = 0, float("nan"), False
        for target in resource:
            if left < target - step + 1:
                break
            left -= target - step + 1
            step, score = target, float(world.evaluate(layer, log_rate, seed, target).mean())
            seen.append((step, score, layer, log_rate))
            trial.report(score, step)
            if pruner and trial.should_prune():
                pruned = True
                break
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.tell(trial, None if pruned else score, state=state)
    _, _, layer, log_rate = max(seen)  # the best score at the highest rung that any trial reached
    return layer, log_rate


def asha(first: int, last: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)


def hyperband(first: int, last: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=last, reduction_factor=2)


STRATEGIES: dict[str, Callable[[World, str, int], tuple[int, float]]] = {
    "race": run_race,
    "race, one rate": partial(run_race, fixed_rate=True),
    "Optuna ASHA": lambda world, prior, seed: run_optuna(asha, world, prior, seed),
    "Optuna Hyperband": lambda world, prior, seed: run_optuna(hyperband, world, prior, seed),
    "Optuna TPE": lambda world, prior, seed: run_optuna(None, world, prior, seed),
    "uniform": run_uniform,
    "prior alone": run_prior,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated models and tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the first world; the others follow")
    parser.add_argument("--budget", type=float, default=0.25, help="what finding may cost, in full runs (default: .25)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), metavar="NAME")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table("strategy", *(f"{prior} prior" for prior in PRIORS), "ms per study", title="Mean regret")
    for name in arguments.strategies:
        strategy = STRATEGIES[name]
        cells, started = [], time.perf_counter()
        for prior in PRIORS:
            regrets = []
            for number in range(arguments.studies):
                world = World.draw(arguments.seed + number, arguments.budget)
                layer, log_rate = strategy(world, prior, number)
                regrets.append(world.best - world.value(layer, log_rate))
            cells.append(f"{np.mean(regrets):.3f} ± {np.std(regrets) / math.sqrt(len(regrets)):.3f}")
        each = (time.perf_counter() - started) / (arguments.studies * len(PRIORS))
        table.add_row(name, *cells, f"{1000 * each:.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
