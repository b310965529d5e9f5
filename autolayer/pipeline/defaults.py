"""Resolves a configuration, without torch: refuses unknown names, and fills the fields that the user did not set.

Values come from the named model's preset, then from the task or from defaults.
"""

import logging

from autolayer import tasks
from autolayer.core.budget import BUDGET, calibration_prompts, calibration_share, default_budget
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.models.names import NAMED, check_model_name
from autolayer.reporting.trackers import check_tracker
from autolayer.tasks.base import Task

logger = logging.getLogger(__name__)

STEPS, PROMPTS_PER_STEP = 400, 64
"""Defaults if neither the user nor a preset sets them: 400 steps of 512 completions, close to arXiv 2607.01232."""
NUM_EVAL = 512


def check_names(config: Config) -> None:
    """Refuses unknown models and tasks, tasks that a packaged model was not made for, and trackers that are missing."""
    check_model_name(config.model)
    for tracker in config.trackers:
        check_tracker(tracker)
    named = NAMED.get(config.model)
    tasks.check_task_name(config, named.forms if named else None)


def check_plan(config: Config) -> None:
    """Refuses to plan a run that costs nothing."""
    if config.budget == 0:
        raise ConfigError(
            "--budget 0 answers from depth alone and runs nothing, so there is nothing to plan: leave out --dry-run, "
            "or give a budget such as 0.1."
        )


def resolve(config: Config, task: Task, verb: str = "pick") -> Config:
    """Returns the settings with every open field filled.

    The default budget of `pick` falls as the number of steps grows; that of other verbs is 0.25.
    """
    num_items = len(task.splits["eval"])
    if (config.num_eval or 0) > num_items:
        logger.warning("--num-eval %d: the eval split has only %d items, so all are used.", config.num_eval, num_items)
    named = NAMED.get(config.model)
    values = {
        "steps": STEPS,
        "prompts_per_step": PROMPTS_PER_STEP,
        "num_eval": task.num_eval or NUM_EVAL,
        **(named.preset(config.task) if named else {}),
        "max_new_tokens": task.max_new_tokens,
    }
    config = config.replace(**{name: v for name, v in values.items() if getattr(config, name) is None})
    assert config.steps is not None and config.num_eval is not None
    if config.budget is None:
        config = config.replace(budget=default_budget(config.steps) if verb == "pick" else BUDGET)
    if verb == "pick" and (share := calibration_share(config)) > (config.budget or 0.0):
        logger.warning(
            "Calibration alone samples %d prompts, %.0f%% of a full run's, which is more than --budget %g: give more "
            "--steps, a larger --budget, or --budget 0, which answers from depth alone.",
            calibration_prompts(config),
            100 * share,
            config.budget,
        )
    return config.replace(num_eval=min(config.num_eval or num_items, num_items))
