"""The training runs of `measure`. Each is done once, and its rewards are kept in measured.json.

A learning rate is chosen by successive halving on the `select` split and the first seed: all rates for a quarter of the
steps, the best three for all steps, and of these the smallest that is as good as the best. A rate at which a run
diverges is excluded with its reason and never becomes a number.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.errors import TrainingError
from autolayer.core.layer_set import Layers
from autolayer.core.progress import Stage
from autolayer.measurement.schedule import FINALISTS, Schedule
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.train_to_step import train_to_step

MEASURED_FILE = "measured.json"


class TrainingRuns:
    """Trains arms and scores them, or reads the rewards that an interrupted run has recorded."""

    def __init__(self, run: RunContext, grid: tuple[float, ...], schedule: Schedule, bar: Stage) -> None:
        self.bench, self.config = run.bench, run.config
        self.grid, self.schedule, self.bar = grid, schedule, bar
        self.records = RunRecords(run)

    @property
    def cost(self) -> dict[str, Cost]:
        """Cost of choosing rates and of training, evaluation included, over all interrupted runs."""
        return {stage: self.records.cost.get(stage, Cost()) for stage in ("rates", "train")}

    def failures(self) -> list[str]:
        """Returns one line for every arm and rate that diverged, with the reason."""
        return [f"{name}: {reason}" for name, reason in self.records.failed.items()]

    def base(self, split: str) -> tuple[float, ...]:
        """Returns the base model's rewards on a split."""
        return self._evaluate(f"base {split}", split, None)

    def run(self, layers: Layers) -> tuple[float, list[tuple[float, ...]]]:
        """Trains an arm in full on every seed; returns its learning rate, and its rewards on `eval` by seed."""
        while True:
            rate = self._choose_rate(layers)
            rewards_S = []
            for seed in self.schedule.seeds:
                start = self.schedule.inherited if seed == self.config.seed else 0
                arm = Arm(layers=layers, learning_rate=rate, seed=seed)
                rewards_I = self._trained(arm, start, self.schedule.steps, "eval")
                if rewards_I is None:
                    break  # a rate that fails on one seed is excluded, and the loop takes the next best
                self.bench.checkpoints.delete(arm)
                rewards_S.append(rewards_I)
            else:
                return rate, rewards_S

    def _choose_rate(self, layers: Layers) -> float:
        """Returns the best rate that has not failed; recorded rewards alone decide, so interruptions change nothing."""
        while alive := [rate for rate in self.grid if not self.records.failure(layers, rate)]:
            if not self.schedule.chooses:
                return alive[0]
            ranked = list(self._ranked(layers, alive, 0, self.schedule.quarter))
            finalists = ranked[:FINALISTS]
            self._delete_checkpoints(layers, ranked[FINALISTS:])
            best = self._ranked(layers, finalists, self.schedule.quarter, self.schedule.steps)
            if best and len(best) == len(finalists):  # otherwise the next best takes the place of what failed
                chosen = _smallest_good_rate(best)
                self._delete_checkpoints(layers, [rate for rate in best if rate != chosen])
                return chosen
        reason = self.records.failure(layers, self.grid[0])
        raise TrainingError(f"{name_of(layers)} failed at every learning rate of the grid, at the smallest: {reason}")

    def _ranked(self, layers: Layers, rates: Sequence[float], start: int, stop: int) -> dict[float, tuple[float, ...]]:
        """Returns the rewards at the rates that do not diverge, the best first; of equals the smaller rate."""
        found = {}
        for rate in rates:
            arm = Arm(layers=layers, learning_rate=rate, seed=self.config.seed)
            rewards_I = self._trained(arm, start, stop, "select")
            if rewards_I is not None:
                found[rate] = rewards_I
        # The same items and noise for all, so sums compare like paired gains.
        return dict(sorted(found.items(), key=lambda item: (-sum(item[1]), item[0])))

    def _delete_checkpoints(self, layers: Layers, rates: Sequence[float]) -> None:
        for rate in rates:
            self.bench.checkpoints.delete(Arm(layers=layers, learning_rate=rate, seed=self.config.seed))

    def _trained(self, arm: Arm, start: int, stop: int, split: str) -> tuple[float, ...] | None:
        """Returns the arm's rewards after `stop` steps, or None if it diverges; progress counts from `start` on."""
        key = f"{arm.key} step {stop} {split}"
        if key in self.records.rewards:
            self._advance(stop - start, arm)
        else:
            try:
                arm = self._train(arm, start, stop, _stage(split))
            except TrainingError as error:
                self.records.fail(arm, str(error))
                self.bench.checkpoints.delete(arm)
                return None
        return self._evaluate(key, split, arm)

    def _train(self, arm: Arm, start: int, stop: int, stage: str) -> Arm:
        found = self.bench.checkpoints.latest(arm)
        if found.step > stop:  # measured.json was lost, and with it what the arm scored on the way
            self.bench.checkpoints.delete(arm)
            found = arm
        self._advance(found.step - start, found)
        for trained in train_to_step(self.bench, found, stop, on_step=lambda _: self._advance(1, arm)):
            self.records.spend(stage, trained.cost)
            found = trained.arm
        return found

    def _evaluate(self, key: str, split: str, arm: Arm | None) -> tuple[float, ...]:
        if key not in self.records.rewards:
            wanted = self.config.search.num_select if split == "select" else self.config.num_eval or 0
            before = self.bench.spent
            rewards_I = self.bench.evaluate(split, wanted, seed=self.config.seed, arm=arm).rewards_I
            self.records.add(key, rewards_I, _stage(split), self.bench.spent - before)
        return self.records.rewards[key]

    def _advance(self, steps: int, arm: Arm) -> None:
        left = (self.bar.total or 0) - self.bar.completed  # a rate that fails late costs more steps than planned
        note = f"{name_of(arm.layers)}, rate {arm.learning_rate:g}, seed {arm.seed}"
        self.bar.advance(max(0, min(steps, left)), note)


def _smallest_good_rate(ranked: dict[float, tuple[float, ...]]) -> float:
    """Returns the smallest rate within one standard error of the best: a larger one may fail on the next seed.

    The one-standard-error rule of Breiman et al. (1984), on paired items.
    """
    best_I = np.array(next(iter(ranked.values())))
    lost = {rate: best_I - np.array(rewards_I) for rate, rewards_I in ranked.items()}
    return min(rate for rate, lost_I in lost.items() if lost_I.mean() <= lost_I.std() / len(lost_I) ** 0.5)


class RunRecords:
    """The file measured.json: rewards by training, failures with their reasons, and costs."""

    def __init__(self, run: RunContext) -> None:
        self.folder = run.folder
        found = self.folder.read(MEASURED_FILE) or {"rewards": {}, "failed": {}, "cost": {}}
        with run.reading(MEASURED_FILE):
            self.rewards = {key: tuple(map(float, rewards)) for key, rewards in found["rewards"].items()}
            self.failed = {name: str(reason) for name, reason in found["failed"].items()}
            self.cost = {stage: Cost(**cost) for stage, cost in found["cost"].items()}

    def add(self, key: str, rewards_I: Sequence[float], stage: str, cost: Cost) -> None:
        """Records the rewards of a finished evaluation."""
        self.rewards[key] = tuple(rewards_I)
        self.spend(stage, cost)

    def spend(self, stage: str, cost: Cost) -> None:
        """Adds to the cost of a stage."""
        self.cost[stage] = self.cost.get(stage, Cost()) + cost
        self._save()

    def fail(self, arm: Arm, reason: str) -> None:
        """Records that an arm diverged at its rate."""
        self.failed[_rate_name(arm.layers, arm.learning_rate)] = reason
        self._save()

    def failure(self, layers: Layers, rate: float) -> str | None:
        """Returns the reason why a rate failed on any seed, or None."""
        return self.failed.get(_rate_name(layers, rate))

    def _save(self) -> None:
        cost = {stage: asdict(cost) for stage, cost in self.cost.items()}
        self.folder.write(MEASURED_FILE, {"rewards": self.rewards, "failed": self.failed, "cost": cost}, indent=None)


def name_of(layers: Layers) -> str:
    """Returns 'full', or the layers as in 'layer 3,4'."""
    return "full" if layers == "full" else f"layer {','.join(map(str, layers))}"


def _rate_name(layers: Layers, rate: float) -> str:
    return f"{name_of(layers)} at rate {rate:.9g}"


def _stage(split: str) -> str:
    return "rates" if split == "select" else "train"
