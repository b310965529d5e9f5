"""The fourth stage: the full RL run of the chosen arm, and the only reading of the `eval` split."""

from dataclasses import dataclass

from autolayer.core.arms import Arm
from autolayer.core.costs import Cost
from autolayer.core.layer_set import name_layers
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.train_to_step import train_to_step
from autolayer.rollouts.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class TrainStage:
    """The trained arm, and the evaluation of the base and the trained model on the same items of `eval`."""

    arm: Arm
    base: Evaluation
    trained: Evaluation
    cost: Cost
    """Cost of training and evaluation, without the steps that the search has already paid for."""


def train_stage(run: RunContext, arm: Arm) -> TrainStage:
    """Trains the arm from its latest checkpoint to the end of the full run, and evaluates it and the base model."""
    config, bench = run.config, run.bench
    steps, deadline = config.steps or 0, run.started + (config.hours or 1e9) * 3600
    inherited = bench.checkpoints.cost(arm)
    arm = bench.checkpoints.latest(arm)  # the race may have trained it further than it says
    bench.checkpoints = bench.checkpoints.of_final_training(arm)
    arm = bench.checkpoints.latest(arm)  # an interrupted final training may be further still
    with run.progress.stage("train", steps) as bar:
        bar.advance(arm.step, name_layers(arm.layers))

        def on_step(reward: float) -> None:
            bar.advance(1, f"{name_layers(arm.layers)}, training reward {reward:.3f}")

        for trained_arm in train_to_step(bench, arm, steps, on_step=on_step, deadline=deadline):
            arm = trained_arm.arm
    before = bench.spent
    with run.progress.stage("evaluate", 2) as bar:
        base = bench.evaluate("eval", config.num_eval or 0, seed=config.seed)
        bar.advance(1, "base")
        trained = bench.evaluate("eval", config.num_eval or 0, seed=config.seed, arm=arm)
        bar.advance(1, "trained")
    cost = bench.checkpoints.cost(arm) - inherited + (bench.spent - before)
    return TrainStage(arm=arm, base=base, trained=trained, cost=cost)
