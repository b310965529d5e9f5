"""Chooses the rollout engine of a run, and checks that it works on this machine."""

import importlib.util
from collections.abc import Callable
from functools import partial

from autolayer.core.config import Config, is_server
from autolayer.core.errors import ConfigError
from autolayer.core.run_folder import RunFolder
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.loading import LoadedModel
from autolayer.models.names import model_path
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.engines.vllm_local import VLLMEngine
from autolayer.rollouts.engines.vllm_server import VLLMServerEngine, connect_servers
from autolayer.rollouts.prompts import encode_prompts
from autolayer.training.workbench import Workbench


def engine_name(config: Config, device_type: str) -> str:
    """Returns 'transformers', 'vllm' or 'server': what the user named, or with 'auto' the fastest available one."""
    # With sharded weights, vLLM has no space for a whole copy of the model on the same devices.
    rollouts = "transformers" if config.shard and config.rollouts == "auto" else config.rollouts
    if is_server(rollouts):
        return "server"
    if rollouts == "auto":
        return "vllm" if device_type == "cuda" and importlib.util.find_spec("vllm") is not None else "transformers"
    return rollouts


def check_engine(name: str) -> None:
    """Refuses a value of --rollouts that cannot work here: vLLM is not installed, or a server does not answer."""
    if is_server(name):
        connect_servers(name)
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError('--rollouts vllm needs vLLM: `pip install -e ".[vllm]"`, or --rollouts transformers.')


def engine_factory(
    config: Config, loaded: LoadedModel, folder: RunFolder, process_group: ProcessGroup
) -> Callable[..., Engine]:
    """Returns a callable that creates the rollout engine of a workbench; a server reads trained layers in `folder`."""
    name, path = engine_name(config, loaded.device.type), model_path(loaded.name)
    if name == "transformers":
        return TransformersEngine
    if name == "server":
        is_rank_0 = process_group.is_rank_0
        return partial(VLLMServerEngine, urls=config.rollouts, path=path, folder=folder.path, is_rank_0=is_rank_0)
    return partial(VLLMEngine, path=path, settings=config.vllm, num_processes=process_group.world_size)


def check_context(bench: Workbench) -> None:
    """Refuses a server that would truncate sequences which the model itself could complete."""
    engine, task = bench.engine, bench.task
    if engine.max_context >= engine.model_max_context:
        return
    rows = [row for split in task.splits.values() for row in split]
    prompts = encode_prompts(bench.tokenizer, rows, dict(task.chat_template_kwargs))
    decoding = task.eval_decoding
    longest = max(map(len, prompts)) + max(task.max_new_tokens, decoding.max_new_tokens if decoding else 0)
    needed = engine.model_max_context if task.environment is not None else min(longest, engine.model_max_context)
    if needed > engine.max_context:
        raise ConfigError(
            f"prompts with their completions have up to {needed} tokens, but the context of the server has "
            f"{engine.max_context}: start it with a larger --max-model-len, or give a smaller --max-new-tokens."
        )
