"""The whole flow from calibration to the result: `pick` and `train_layer`, for the command line and the library."""

from typing import Literal, Unpack, get_args

from autolayer.core.config import Config, Options, config_of, with_options
from autolayer.core.errors import unknown
from autolayer.core.progress import Progress
from autolayer.pipeline.arm_choice import insert_adapters, named_arm
from autolayer.pipeline.calibrate_stage import calibrate_stage
from autolayer.pipeline.depth_answer import answer_from_depth
from autolayer.pipeline.outputs import finished_result, save_result, train_once
from autolayer.pipeline.probe_stage import probe_stage
from autolayer.pipeline.result_builder import build_result
from autolayer.pipeline.search_stage import search_stage
from autolayer.pipeline.setup import setup
from autolayer.pipeline.train_stage import train_stage
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
        until: Stop after this stage; the same call without it resumes there.
        progress: Shows progress, such as `TerminalProgress()`; default: nothing is shown.
        options: The settings as keyword arguments instead of a `config`.

    Returns:
        The result. The run folder holds it as result.json, and the trained layer as layer.safetensors.

    Raises:
        AutolayerError: The settings, the model, the data or the reward cannot work.
        NoSignalError: The base model's rewards do not vary.

    Example:
        result = autolayer.pick(model="tiny", task="math:arith", seed=1)
        print(result.best_layers, result.gain.value)
    """
    if until is not None and until not in get_args(Until):
        raise unknown("stage", until, get_args(Until))
    config = config_of(config, options)
    if config.budget == 0:
        return answer_from_depth(config, until)
    with setup(config, progress) as run:
        if done := finished_result(run):
            return done
        calibration = calibrate_stage(run)
        if until == "calibrate":
            return save_result(run, build_result(run, calibration))

        probes = probe_stage(run, calibration)
        if until == "probe":
            return save_result(run, build_result(run, calibration, probes))

        search = search_stage(run, calibration, probes)
        if until == "search":
            return save_result(run, build_result(run, calibration, probes, search))

        def train() -> PickResult:
            training = train_stage(run, search.outcome.winner)
            return save_result(run, build_result(run, calibration, probes, search, training), training.arm)

        return train_once(run, train)


@with_options
def train_layer(
    config: Config | None = None, *, progress: Progress | None = None, **options: Unpack[Options]
) -> PickResult:
    """Trains the layers that `layers` names, without searching; "full" trains all parameters.

    Without `learning_rate`, it trains at the starting rate that the probes determine.

    Args:
        config: The settings of the run.
        progress: Shows progress, such as `TerminalProgress()`; default: nothing is shown.
        options: The settings as keyword arguments instead of a `config`.

    Returns:
        The scores before and after. The run folder holds the trained layers as layer.safetensors.

    Raises:
        AutolayerError: Something in the settings, the model, the data or the reward cannot work.

    Example:
        autolayer.train_layer(model="tiny", task="math:arith", layers="2-3", learning_rate=1e-3)
    """
    with setup(config_of(config, options), progress, verb="train") as run:
        if done := finished_result(run):
            return done
        calibration = calibrate_stage(run)
        probes = probe_stage(run, calibration, before_race=False) if run.config.learning_rate is None else None
        insert_adapters(run)
        training = train_stage(run, named_arm(run, None if probes is None else probes.report))
        return save_result(run, build_result(run, calibration, probes, training=training), training.arm)
