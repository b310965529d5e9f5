"""The whole flow, top to bottom. The same verbs serve the command line and somebody's own pipeline."""

from __future__ import annotations

from typing import Literal, Unpack, get_args

from autolayer.core.arms import Arm
from autolayer.core.config import Config, Options, config_of, with_options
from autolayer.core.errors import unknown
from autolayer.core.progress import Progress
from autolayer.pipeline.result_builder import Summary
from autolayer.pipeline.setup import setup
from autolayer.probes.probe_report import joint_rate
from autolayer.reporting.results import PickResult

Until = Literal["calibrate", "probe", "search"]


@with_options
def pick(
    config: Config | None = None,
    *,
    until: Until | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> PickResult:
    """Finds the layer that RL improves most, and trains it.

    Args:
        config: The settings of the run.
        until: Stop after this stage; the same call without it goes on from there.
        progress: Shows progress; default: nothing is shown.
        options: The settings as keyword arguments instead of a `config`.

    Returns:
        What was found. The run folder holds it as result.json, and the trained layer as layer.safetensors.

    Raises:
        AutolayerError: Something in the settings, the model, the data or the reward cannot work; among them
            NoSignalError, where the base model's rewards do not vary.

    Example:
        result = autolayer.pick(model="tiny", task="math:arith", seed=1)
        print(result.best_layers, result.gain.value)
    """
    if until is not None and until not in get_args(Until):
        raise unknown("stage", until, get_args(Until))
    with setup(config_of(config, options), progress) as stages:
        if done := stages.finished():
            return done
        summary = Summary(stages)

        calibration = summary.add_calibration(*stages.calibrate())
        if until == "calibrate":
            return stages.keep(summary.result())

        probed = summary.add_probes(*stages.probe(calibration))
        if until == "probe":
            return stages.keep(summary.result())

        outcome = summary.add_search(*stages.search(calibration, probed, summary.spent))
        if until == "search":
            return stages.keep(summary.result())

        def train() -> PickResult:
            trained = summary.add_training(*stages.train(stages.final_arm(outcome, probed)))
            return stages.keep(summary.result(), trained)

        return stages.finish(train)


@with_options
def train_layer(
    config: Config | None = None, *, progress: Progress | None = None, **options: Unpack[Options]
) -> PickResult:
    """Trains the layers that `layers` names, without searching; "full" trains all parameters.

    Without a `learning_rate` it takes the starting rate that the probes give.

    Args:
        config: The settings of the run.
        progress: Shows progress; default: nothing is shown.
        options: The settings as keyword arguments instead of a `config`.

    Returns:
        The scores before and after. The run folder holds the trained layers as layer.safetensors.

    Raises:
        AutolayerError: Something in the settings, the model, the data or the reward cannot work.

    Example:
        autolayer.train_layer(model="tiny", task="math:arith", layers="2-3", learning_rate=1e-3)
    """
    with setup(config_of(config, options), progress, verb="train") as stages:
        if done := stages.finished():
            return done
        summary = Summary(stages)
        calibration = summary.add_calibration(*stages.calibrate())
        rate = stages.config.learning_rate
        if rate is None:
            rate = joint_rate(summary.add_probes(*stages.probe(calibration, searches=False)))
        stages.adapt()
        if stages.config.learning_rate is None:
            rate *= stages.rate_factor()
        arm = Arm(layers=stages.trained_layers, learning_rate=rate, seed=stages.config.seed)
        trained = summary.add_training(*stages.train(arm))
        return stages.keep(summary.result(), trained)
