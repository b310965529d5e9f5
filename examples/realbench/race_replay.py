"""Replays schedules of short runs on the curves of real models: which loses least at a given budget?

    PYTHONPATH=examples:examples/benchmarks python examples/realbench/race_replay.py     # 10 minutes on one core

A study draws a model around a measured curve (its mean over three neighbours, and noise of each layer's own), with the
learning curves and the noise of `race_simulation`. Predictions are those that the tool made for this model before any
short run, or for a published curve the depth prior fitted without its family. Regret is the contribution that the
chosen layer loses against the best. All schedules keep the starting rate. Expected: at a quarter of a run no schedule
gains more than .025 on the prediction alone, and the race nothing; with one run the race gains .04.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import depth_prior
import numpy as np
from race_simulation import RATE, World, run_race
from real_contributions import contributions
from real_environments import ENVIRONMENTS, load

from autolayer.core.depth_prior import NORMAL_80, error_deviation
from autolayer.search.records import Candidate, RaceConfig

BUDGETS = (0.1, 0.25, 1.0)
PUBLISHED, MEASURED = "qwen3-1.7b", ("smollm2.sums.grpo", "smollm2.larger.grpo")
OWN_SD = 0.07
"""Deviation of a layer's contribution around its neighbours' mean."""
STEPS, FULL_GAIN = 400, 0.3
APART = 3  # layers


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A measured curve, and what was predicted for it."""

    contribution_L: np.ndarray
    predicted_P_L: np.ndarray
    """One row for each time that the tool was asked."""
    sd_L: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RealWorld(World):
    """A world around a measured curve."""

    predicted_L: np.ndarray
    sd_L: np.ndarray

    def candidates(self, prior: str) -> list[Candidate]:
        return [
            Candidate(layers=(layer,), predicted=float(value), predicted_sd=float(sd), learning_rate=RATE)
            for layer, (value, sd) in enumerate(zip(self.predicted_L, self.sd_L, strict=True))
        ]

    def config(self, seed: int, *, fixed_rate: bool = False) -> RaceConfig:
        return replace(super().config(seed, fixed_rate=fixed_rate), is_pretrained=True)


def published(name: str) -> Curve:
    curve = depth_prior.CURVES[name]
    parameters = depth_prior.fit(depth_prior.without(curve.family))
    shape_L = depth_prior.FORMS[depth_prior.CHOSEN][0](depth_prior.depths(curve), parameters)
    layers = range(curve.num_layers)
    values = curve.values()
    return Curve(
        contribution_L=np.array([values[layer] for layer in layers]),
        predicted_P_L=shape_L[None] - shape_L.mean() + 0.8,
        sd_L=error_deviation(layers, curve.num_layers),
    )


def measured(name: str) -> Curve:
    """Layers between two measured ones lie on the line between them."""
    found = load(ENVIRONMENTS[name])
    values, picks = contributions(found), found["picks"]
    low, high = (np.mean([pick[end] for pick in picks], axis=0) for end in ("low", "high"))
    return Curve(
        contribution_L=np.interp(
            range(ENVIRONMENTS[name].num_layers), list(values), [value for value, _, _ in values.values()]
        ),
        predicted_P_L=np.array([pick["predicted"] for pick in picks]),
        sd_L=(high - low) / (2 * NORMAL_80),
    )


def draw(seed: int, curve: Curve, budget: float) -> RealWorld:
    rng = np.random.default_rng(seed)
    padded = np.pad(curve.contribution_L, 1, mode="edge")
    smooth_L = np.convolve(padded, np.ones(3) / 3, mode="valid")
    num_layers = len(smooth_L)
    return RealWorld(
        total_steps=STEPS,
        budget_steps=round(budget * STEPS),
        contribution_L=smooth_L + OWN_SD * rng.standard_normal(num_layers),
        best_log_rate_L=np.zeros(num_layers),
        rate_loss=0.1,
        time_constant_L=np.exp(rng.normal(np.log(0.12), 0.4, num_layers)),
        full_gain=FULL_GAIN,
        item_base_I=rng.beta(0.8, 1.0, 128),
        seed=seed,
        predicted_L=curve.predicted_P_L[seed % len(curve.predicted_P_L)],
        sd_L=curve.sd_L,
    )


def best_of(world: RealWorld, layers: Sequence[int], steps: int) -> int:
    """Returns the layer that scores best after `steps`, at least one."""
    return max(layers, key=lambda layer: world.evaluate(layer, 0.0, world.seed, max(1, steps)).mean())


def prediction(world: RealWorld) -> int:
    return int(world.predicted_L.argmax())


def race(world: RealWorld) -> int:
    return run_race(world, "", world.seed, fixed_rate=True)[0]


def first_choices(count: int, apart: int = 1) -> Callable[[RealWorld], int]:
    """Trains the `count` best predictions, `apart` layers from each other, equally long."""

    def choose(world: RealWorld) -> int:
        chosen: list[int] = []
        for layer in np.argsort(-world.predicted_L):
            if len(chosen) < count and all(abs(layer - other) >= apart for other in chosen):
                chosen.append(int(layer))
        return best_of(world, chosen, world.budget_steps // len(chosen) - 1)

    return choose


def third_then_neighbours(world: RealWorld) -> int:
    """Trains every third layer on half of the budget, then the leader and its neighbours on the other half."""
    num_layers, half = len(world.predicted_L), world.budget_steps // 2
    third = range(0, num_layers, 3)
    leader = best_of(world, third, half // len(third) - 1)
    near = [layer for layer in range(leader - 2, leader + 3) if 0 <= layer < num_layers]
    return best_of(world, near, half // len(near) - 1)


def all_layers(world: RealWorld) -> int:
    num_layers = len(world.predicted_L)
    return best_of(world, range(num_layers), world.budget_steps // num_layers - 1)


SCHEDULES: dict[str, Callable[[RealWorld], int]] = {
    "prediction alone": prediction,
    "the race": race,
    "first 3 predictions": first_choices(3),
    "first 6 predictions": first_choices(6),
    "first 3, three layers apart": first_choices(3, APART),
    "every third, then neighbours": third_then_neighbours,
    "all layers": all_layers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=150, help="models drawn around each curve")
    studies = parser.parse_args().studies
    curves = {PUBLISHED: published(PUBLISHED)} | {name: measured(name) for name in MEASURED}
    for budget in BUDGETS:
        print(f"\n| --budget {budget:g} | {' | '.join(curves)} | mean |\n|{' --- |' * (len(curves) + 2)}")
        for name, choose in SCHEDULES.items():
            regrets = [
                [world.contribution_L.max() - world.contribution_L[choose(world)] for world in worlds]
                for worlds in ([draw(seed, curve, budget) for seed in range(studies)] for curve in curves.values())
            ]
            means = [float(np.mean(each)) for each in regrets]
            print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in (*means, np.mean(means)))} |", flush=True)
    error = max(float(np.std(each)) for each in regrets) / studies**0.5
    print(f"\nStandard error of a mean: up to {error:.3f}")


if __name__ == "__main__":
    main()
