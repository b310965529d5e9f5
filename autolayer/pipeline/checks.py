"""Checks that refuse a run before its weights are loaded, which may take minutes."""

import torch
from transformers import PreTrainedModel

from autolayer import tasks
from autolayer.core.config import Config
from autolayer.core.errors import AutolayerError, ConfigError, ModelError
from autolayer.core.launch import is_first_process
from autolayer.core.layer_set import Layers, parse_layers
from autolayer.models.layers import find_layers, linear_module_names
from autolayer.models.loading import meta_model, num_embeddings, read_tokenizer
from autolayer.models.validation import check_tokens, first_line
from autolayer.pipeline.engine_choice import check_engine
from autolayer.probes import known
from autolayer.search.optuna_storage import check_storage_opens
from autolayer.tasks.base import Task
from autolayer.training.workbench import Workbench


def check_before_loading(config: Config, verb: str) -> Task:
    """Checks engine, layers and options of 'pick', 'train' or 'measure' against the model, and loads the task."""
    check_engine(config.rollouts)
    if config.history is not None:
        known.history(config.history)
    shape = meta_model(config.model)
    candidates = parse_layers(config.layers, len(find_layers(shape)), config.model, allow_full=verb == "train")
    check_options(config, verb, candidates, shape)
    if config.storage is not None and is_first_process():
        check_storage_opens(config.storage)
    tokenizer = read_tokenizer(config.model)
    check_tokens(config.model, tokenizer, num_embeddings(shape))
    task = tasks.load_task(config, chat=tokenizer.chat_template is not None)
    if config.algorithm == "gigpo" and task.environment is None:
        raise ConfigError(
            f"--algorithm gigpo compares the steps of an episode, and task '{task.name}' has none: give a task with an "
            "environment, such as agent:house, or --algorithm grpo."
        )
    if config.reward_retries and task.environment is not None:
        raise ConfigError(
            f"--reward-retries calls a reward function again, and task '{task.name}' has an environment instead: leave "
            "it out."
        )
    return task


def check_options(config: Config, verb: str, candidates: Layers, model: PreTrainedModel) -> None:
    """Refuses options that belong to another verb, or do not go with the layers that --layers names."""
    if verb == "train" and config.layers is None:
        raise ConfigError(
            "layers is missing: name the layers to train (16, 10-14 or 8,16, or full for all), or let `pick` find one."
        )
    num_layers = len(find_layers(model))
    given = {
        "--top-k": config.top_k != 1,
        "--adapter": verb == "measure" and config.adapter is not None,
        "--storage": config.storage is not None,
    }
    if verb != "pick" and any(given.values()):
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ConfigError(f"{names} belongs to `pick`, which chooses layers: leave it out of `{verb}`.")
    if verb != "pick" and config.budget == 0:
        raise ConfigError(f"--budget 0 belongs to `pick`, which answers from depth alone: leave it out of `{verb}`.")
    if config.shard and (verb == "measure" or candidates == "full"):
        raise ConfigError(
            "--shard does not go with training all layers at once, because each device can hold only a few whole "
            "blocks: leave it out."
        )
    if candidates == "full" and config.learning_rate is None:
        raise ConfigError(
            "--layers full has no learning rate to start from, since probes score single layers: give --learning-rate."
        )
    if candidates != "full" and config.top_k > len(candidates):
        raise ConfigError(f"--top-k {config.top_k} is more than the {len(candidates)} candidate layers: give fewer.")
    adapted = range(num_layers) if candidates == "full" else candidates
    if config.adapter is not None and not linear_module_names(model, adapted):
        raise ConfigError(
            f"--adapter lora needs torch.nn.Linear modules, and the layers of {config.model} have none: leave it out."
        )


def check_divisible(config: Config, num_processes: int) -> None:
    """Refuses a training step whose completions cannot be divided among the processes."""
    batch = (config.prompts_per_step or 0) * config.group_size
    if batch % num_processes:
        raise ConfigError(
            f"{config.prompts_per_step} prompts x {config.group_size} completions cannot be divided among "
            f"{num_processes} processes: give other --prompts-per-step, or start another number of processes."
        )


def check_passes(bench: Workbench) -> None:
    """Scores and samples a few tokens, so that a model whose class cannot do that is refused before work begins."""
    what = "scoring"
    try:
        bench.scorer.starts_midway  # noqa: B018  (scores some tokens)
        if not bench.engine.has_own_weights:
            what = "sampling"
            bench.engine.sample_requests([list(range(16))], [0], [3], set())
    except (AutolayerError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"model '{bench.loaded.name}' cannot be trained: {what} a few tokens fails in transformers' "
            f"{type(bench.model).__name__} ({first_line(error)}); docs/architectures.md lists architectures that work."
        ) from error
