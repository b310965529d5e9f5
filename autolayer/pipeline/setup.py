"""From settings to a workbench: names checked, open fields filled, model and task loaded, run folder claimed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from autolayer import tasks
from autolayer.core.budget import BUDGET, default_budget
from autolayer.core.config import Config, is_server
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.layer_set import Layers
from autolayer.core.progress import Progress, Silent, num_processes, processes_here
from autolayer.core.run_folder import PATCH, RunFolder, open_run
from autolayer.distributed.fsdp import make_mesh, shard
from autolayer.distributed.process_group import Ranks, attempt, check_device, joined
from autolayer.models.layers import find_layers, layer_parameters, linear_module_names, parse_layers
from autolayer.models.loading import (
    EMBEDDED,
    LoadedModel,
    check_name,
    find_device,
    load_model,
    max_positions,
    meta_model,
    model_path,
    read_tokenizer,
)
from autolayer.models.patch import check_disk_space
from autolayer.models.quantization import check_installed, quantize_frozen
from autolayer.pipeline.stages import Stages
from autolayer.probes import known
from autolayer.rollouts import evaluation
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.engines.vllm_local import VLLMEngine
from autolayer.rollouts.engines.vllm_server import VLLMServerEngine, check_servers
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.rollouts.types import encode_prompts
from autolayer.search.journal import check_storage
from autolayer.tasks.base import Task
from autolayer.training.workbench import TrainSettings, Workbench

logger = logging.getLogger(__name__)

DEFAULTS = {"steps": 400, "prompts_per_step": 64}
"""Where neither the user nor a preset says: 400 steps of 512 completions, close to arXiv 2607.01232."""
NUM_EVAL = 512


@contextmanager
def prepare(config: Config, progress: Progress | None = None, *, verb: str = "pick") -> Iterator[Stages]:
    """Checks everything that can be checked before work begins, cheap things first, and holds the run folder.

    Raises:
        AutolayerError: Something in the settings, the model, the data or the run folder cannot work. Nothing has
            been written then.
    """
    started = time.monotonic()
    check_names(config)
    check_device(config.device)
    ranks = joined(on_cpu=config.device == "cpu")
    progress = progress if progress and ranks.leads else Silent()
    with progress.stage("load", None):
        task = early_checks(config, verb)
        config = dataclasses.replace(config, device=take_device(config.device))
        device = find_device(config.device)
        loaded = load(config, ranks, device)
    folder = open_run(config, verb)
    task = apply_length_limits(config, task, loaded.tokenizer, max_positions(loaded.model.config))
    if verb != "pick" and config.budget is None:  # it searches nothing; its probes are as large as ever
        config = dataclasses.replace(config, budget=BUDGET)
    config = resolve(config, task)
    candidates = parse_layers(config.layers, loaded.num_layers, config.model, allow_full=verb == "train")
    trained = layer_parameters(loaded.model, candidates if config.boost is None else "full")
    if config.storage is not None:
        check_storage(config.storage)
    check_disk_space(folder / PATCH, trained.values())
    if config.history is not None:
        known.history(config.history)
    resolved = {"verb": verb, **config.signed(), "base_hash": loaded.weight_hash, **_content(config)}
    if verb != "measure":
        del resolved["measure"]
    signature = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:10]
    packed = 0.0
    if config.frozen is not None:  # its hash is known by now, which is that of the base
        assert candidates != "full"
        loaded.device = device
        packed = quantize_frozen(loaded.model, candidates, config.frozen, device)
    settings = TrainSettings(
        algorithm=config.algorithm,
        prompts_per_step=config.prompts_per_step or 0,
        group_size=config.group_size,
        beta=config.beta,
        gigpo=config.gigpo,
        recompute=config.recompute,
    )
    check_share(config, ranks.num)
    engine = choose_engine(config, loaded, folder, ranks)
    bench = Workbench(
        loaded, task, settings, folder, temperature=config.temperature, make_engine=engine, ranks=ranks,
        shares_first=config.storage is None,
    )  # fmt: skip
    check_context(bench)
    claimed: dict[str, Any] = {"signature": signature}
    with ExitStack() as held:
        if ranks.leads:
            held.callback(ranks.leave)
            if config.storage is None:  # else workers share it
                held.enter_context(folder.held())
            claimed = folder.claim(resolved, signature, accept_changes=config.accept_changes)
            if config.storage is not None:
                try:
                    check_storage(config.storage, claimed["signature"])
                except RunFolderError:
                    folder.give_up()
                    raise
        else:
            bench.follow()
        yield Stages(
            config=config,
            bench=bench,
            candidates=candidates if candidates != "full" else tuple(range(loaded.num_layers)),
            trained_layers=candidates,
            progress=progress,
            signature=claimed["signature"],
            changed=tuple(claimed.get("changed", ())),
            packed=packed,
            started=started,
        )


def load(config: Config, ranks: Ranks, device: torch.device) -> LoadedModel:
    """The model, on its device, in this process's shards, or in host memory where it is still to be packed."""
    if not config.shard:
        return load_model(config.model, config.device if config.frozen is None else "cpu")
    if ranks.num < 2:
        raise ConfigError(
            "--shard divides the model among the processes of a launcher, and there is one: start several by "
            "`torchrun --nproc_per_node N -m autolayer ... --shard`."
        )
    mesh = make_mesh(ranks, device)

    def load_shards() -> LoadedModel:
        loaded = load_model(config.model, "cpu")
        if ranks.leads:
            loaded.weight_hash  # noqa: B018  (asked for while the weights are whole)
        shard(loaded.model, ranks, mesh, device)
        loaded.device = device
        return loaded

    # One process of a machine after the other: its host holds one whole model, not one for each.
    found: LoadedModel | Exception | None = None
    for turn in range(processes_here()):
        if turn == ranks.index % processes_here():
            found = attempt(load_shards)
        ranks.gather(found if isinstance(found, Exception) else None)
    assert isinstance(found, LoadedModel)
    found.weight_hash = ranks.gather(found.weight_hash if ranks.leads else "")[0]
    return found


def check_share(config: Config, num: int) -> None:
    """Refuses a step that cannot be divided among the processes."""
    batch = (config.prompts_per_step or 0) * config.group_size
    if batch % num:
        raise ConfigError(
            f"{config.prompts_per_step} prompts x {config.group_size} completions cannot be divided among "
            f"{num} processes: give other --prompts-per-step, or start another number of processes."
        )


def take_device(device: str) -> str:
    """Makes a GPU other than the first the only one that this process sees: Trainer and vLLM take the first.

    Raises:
        ConfigError: There is no such device, or CUDA is in use already.
    """
    index = find_device(device).index
    if not index or num_processes() > 1:
        return device
    if torch.cuda.is_initialized():
        raise ConfigError(
            f"--device {device} comes too late in this process: start it with CUDA_VISIBLE_DEVICES={index}."
        )
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[index] if seen else str(index)
    return "cuda"


def check_context(bench: Workbench) -> None:
    """Refuses a rollout engine that would cut off what the model itself would not."""
    engine, task = bench.engine, bench.task
    if engine.max_context >= engine.model_max_context:
        return
    rows = [row for split in task.splits.values() for row in split]
    prompts = encode_prompts(bench.tokenizer, rows, dict(task.chat_template_kwargs))
    decoding = evaluation.requests(task, "eval", 1, 0).decoding
    longest = max(map(len, prompts)) + max(task.max_new_tokens, decoding.max_new_tokens if decoding else 0)
    needed = engine.model_max_context if task.environment is not None else min(longest, engine.model_max_context)
    if needed > engine.max_context:
        raise ConfigError(
            f"prompts with their completions are up to {needed} tokens, and the server holds {engine.max_context}: "
            "start it with a larger --max-model-len, or give a smaller --max-new-tokens."
        )


def check_engine(name: str) -> None:
    """Refuses a rollout engine that cannot work here."""
    if is_server(name):
        check_servers(name)
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError('--rollouts vllm needs vLLM: `pip install "autolayer[vllm]"`, or --rollouts transformers.')


def engine_name(config: Config, device_type: str) -> str:
    """Which engine generates: what was asked for, or what is best here."""
    alone = config.frozen is not None or config.shard  # the model has no other copy here
    rollouts = "transformers" if alone and config.rollouts == "auto" else config.rollouts
    if is_server(rollouts):
        return "server"
    if rollouts == "auto":
        return "vllm" if device_type == "cuda" and importlib.util.find_spec("vllm") is not None else "transformers"
    return rollouts


def choose_engine(config: Config, loaded: LoadedModel, folder: RunFolder, ranks: Ranks) -> Callable[..., Engine]:
    """What makes the rollout engine."""
    name, path = engine_name(config, loaded.device.type), model_path(loaded.name)
    if name == "transformers":
        return TransformersEngine
    if name == "server":
        return partial(VLLMServerEngine, urls=config.rollouts, path=path, folder=folder.path, leads=ranks.leads)
    return partial(VLLMEngine, path=path, settings=config.vllm, num_processes=ranks.num)


def early_checks(config: Config, verb: str) -> Task:
    """Loads the task, and refuses what cannot work before the weights are loaded, which may take minutes.

    Raises:
        AutolayerError: As `prepare`.
    """
    check_engine(config.rollouts)
    shape = meta_model(config.model)
    depth = len(find_layers(shape))
    candidates = parse_layers(config.layers, depth, config.model, allow_full=verb == "train")
    check_beyond(config, verb, candidates, shape)
    task = tasks.load_task(config, chat=read_tokenizer(config.model).chat_template is not None)
    if config.algorithm == "gigpo" and task.environment is None:
        raise ConfigError(
            f"--algorithm gigpo compares the steps of an episode, and task '{task.name}' has none: give a task with an "
            "environment, such as agent:house, or --algorithm grpo."
        )
    return task


def check_beyond(config: Config, verb: str, candidates: Layers, model: PreTrainedModel) -> None:
    """Refuses what this verb, or this model, cannot do with more or less than one layer.

    Raises:
        ConfigError: `train` and `measure` choose nothing, there are too few layers, or none that LoRA could adapt.
    """
    searching = [name for name, default in (("top_k", 1), ("boost", None)) if getattr(config, name) != default]
    if verb == "measure" and config.adapter is not None:
        searching.append("adapter")
    if verb != "pick" and config.storage is not None:
        searching.append("storage")
    if verb != "pick" and searching:
        names = " and ".join("--" + name.replace("_", "-") for name in searching)
        raise ConfigError(f"{names} belongs to `pick`, which chooses layers: leave it out of `{verb}`.")
    if config.shard and (verb == "measure" or candidates == "full"):
        raise ConfigError("--shard holds one block whole at a time, and this trains all at once: leave it out.")
    if config.frozen is not None:
        if verb != "train":
            raise ConfigError(f"--frozen belongs to `train`: `{verb}` looks at every layer as it is. Leave it out.")
        if candidates == "full" or len(candidates) == len(find_layers(model)):
            raise ConfigError(f"--layers {config.layers} leaves no layer for --frozen {config.frozen}: leave one out.")
        check_installed(config.frozen)
    if candidates == "full" and config.learning_rate is None:
        raise ConfigError(
            "--layers full has no learning rate to start from, probes look at layers: give --learning-rate."
        )
    if candidates != "full" and config.top_k > len(candidates):
        raise ConfigError(f"--top-k {config.top_k} is more than the {len(candidates)} candidate layers: give fewer.")
    chosen = range(len(find_layers(model))) if candidates == "full" else candidates
    if config.adapter is not None and not linear_module_names(model, chosen):
        raise ConfigError(
            f"--adapter lora finds no torch.nn.Linear in the layers of {config.model} to adapt: leave it out."
        )


def check_names(config: Config) -> None:
    """Refuses unknown models and tasks without importing anything heavy."""
    check_name(config.model)
    embedded = EMBEDDED.get(config.model)
    tasks.check_name(config, embedded.forms if embedded else None)


def resolve(config: Config, task: Task) -> Config:
    """Fills what the user left open: the embedded model's preset first, then the task, then the defaults."""
    if (config.num_eval or 0) > len(task.splits["eval"]):
        rows = len(task.splits["eval"])
        logger.warning("--num-eval %d: the eval split has %d items, all are taken.", config.num_eval, rows)
    embedded = EMBEDDED.get(config.model)
    preset = {**DEFAULTS, "num_eval": task.num_eval or NUM_EVAL, **(embedded.preset(config.task) if embedded else {})}
    preset["max_new_tokens"] = task.max_new_tokens
    open_fields = {name: value for name, value in preset.items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **open_fields)
    if config.budget is None and config.steps is not None:
        config = dataclasses.replace(config, budget=default_budget(config.steps))
    rows = len(task.splits["eval"])
    return dataclasses.replace(config, num_eval=min(config.num_eval or rows, rows))


def _content(config: Config) -> dict[str, str]:
    """Hashes of the user's own files: an edited file is another configuration. Public data sets are not edited."""
    named = {
        "data": config.data if config.reward else None,
        "reward": config.reward,
        "task": config.task if ".py:" in config.task else None,
    }
    hashes = {}
    for name, reference in named.items():
        if reference is not None:
            path = Path(reference.rsplit(":", 1)[0] if name != "data" else reference)
            hashes[f"{name}_hash"] = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
    if config.history is not None:
        content = [file.read_bytes() for file in known.files(config.history)]
        hashes["history_hash"] = hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
    return hashes
