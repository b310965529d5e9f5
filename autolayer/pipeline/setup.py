"""Sets a run up: checks names, fills open fields, loads model and task, and starts or resumes the run folder."""

import gc
import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.launch import processes_here, without_incomplete_variables
from autolayer.core.layer_set import parse_layers
from autolayer.core.progress import Progress
from autolayer.core.run_folder import CONFIG, PATCH, TENSORBOARD, open_run
from autolayer.distributed.fsdp import make_mesh, shard
from autolayer.distributed.process_group import ProcessGroup, check_launcher, join_process_group
from autolayer.distributed.shared_run_folder import SharedRunFolder
from autolayer.models.computing_dtype import computing_dtype, widen
from autolayer.models.device import find_device
from autolayer.models.disk_space import check_disk_space, num_bytes
from autolayer.models.layers import find_layers, layer_parameters
from autolayer.models.loading import LoadedModel, load_model, max_positions, num_embeddings
from autolayer.pipeline.checks import check_before_loading, check_divisible, check_passes
from autolayer.pipeline.defaults import check_names, resolve
from autolayer.pipeline.engine_choice import check_context, engine_factory, engine_name
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.visible_device import only_visible
from autolayer.probes import known
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.search.study import check_storage
from autolayer.tasks.data_files import data_content
from autolayer.tasks.deadline import rewards_end_by
from autolayer.training.workbench import Workbench


@contextmanager
def setup(config: Config, progress: Progress | None = None, *, verb: str = "pick") -> Iterator[RunContext]:
    """Checks everything that can be checked before work begins, cheap checks first, and loads model and task.

    Yields the run of 'pick', 'train' or 'measure'. Its folder is locked until the block ends; with --storage, several
    workers share it instead. If something cannot work, it raises before anything is written.
    """
    started = time.monotonic()
    check_names(config)
    check_launcher(config.device)
    process_group = join_process_group(on_cpu=config.device == "cpu")
    process_group.on_rank_0(open_run(config, verb).check)
    progress = progress if progress and process_group.is_rank_0 else Progress()
    with ExitStack() as stack:
        stack.enter_context(without_incomplete_variables())
        if config.hours is not None:
            stack.enter_context(rewards_end_by(started + config.hours * 3600))
        with progress.stage("load", None), process_group.failing_together():
            task = check_before_loading(config, verb)
            config = config.replace(device=stack.enter_context(only_visible(config.device)))
            device = find_device(config.device)
            loaded = load(config, process_group, device)
        widen(loaded, process_group.on_rank_0(partial(dtype_of_run, config, verb, loaded.model, device)))
        folder = SharedRunFolder(open_run(config, verb).path, process_group)
        model, tokenizer = loaded.model, loaded.tokenizer
        task = apply_length_limits(config, task, tokenizer, max_positions(model.config), num_embeddings(model))
        config = resolve(config, task, verb)
        candidates = parse_layers(config.layers, loaded.num_layers, config.model, allow_full=verb == "train")
        check_divisible(config, process_group.world_size)
        if config.storage is not None:
            process_group.on_rank_0(partial(check_storage, config.storage))
        trained = layer_parameters(loaded.model, candidates)
        process_group.on_rank_0(lambda: check_disk_space(folder / PATCH, num_bytes(trained.values())))
        signed = _signed(config, verb, loaded)
        with process_group.failing_together():  # an engine may not start
            bench = Workbench(
                loaded,
                task,
                config,
                folder,
                make_engine=engine_factory(config, loaded, folder, process_group),
                process_group=process_group,
            )
            check_passes(bench)
        stack.callback(bench.log.close)
        check_context(bench)
        if config.storage is None:  # with a storage, several workers share the folder
            stack.enter_context(folder.locked())
        recorded = folder.start_or_resume(signed, accept_changes=config.accept_changes)
        watch = (
            f"; to watch it: tensorboard --logdir {folder / TENSORBOARD}" if "tensorboard" in config.trackers else ""
        )
        progress.say(f"run folder: {folder.path}{watch}")
        if config.storage is not None:
            try:
                process_group.on_rank_0(partial(check_storage, config.storage, recorded["signature"]))
            except RunFolderError:
                folder.abandon()
                raise
        # transformers collects garbage whenever a trainer starts; what is loaded by now stays and need not be searched.
        if not gc.get_freeze_count():  # or what the caller froze would be thawed
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
        yield RunContext(
            config=config,
            bench=bench,
            candidates=candidates if candidates != "full" else tuple(range(loaded.num_layers)),
            trained_layers=candidates,
            progress=progress,
            signature=recorded["signature"],
            changed_files=tuple(recorded.get("changed", ())),
            started=started,
        )


def load(config: Config, process_group: ProcessGroup, device: torch.device) -> LoadedModel:
    """Loads the model on its device, whole or as the shard of this rank."""
    if not config.shard:
        return load_model(config.model, config.device)
    if process_group.world_size < 2:
        raise ConfigError(
            "--shard divides the model among the processes of a launcher, but there is only one process: start "
            "several with `torchrun --nproc_per_node N -m autolayer ... --shard`."
        )
    mesh = make_mesh(process_group, device)

    def load_shards() -> LoadedModel:
        loaded = load_model(config.model, "cpu")
        if process_group.is_rank_0:
            loaded.weight_hash  # noqa: B018  (computed while the weights are whole)
        shard(loaded.model, find_layers(loaded.model), process_group, mesh, device)
        loaded.device = device
        return loaded

    # The ranks of a machine load one after the other, so that its host memory holds one whole model at a time.
    found: LoadedModel | None = None
    for local_rank in range(processes_here()):
        with process_group.failing_together():
            if local_rank == process_group.rank % processes_here():
                found = load_shards()
    assert found is not None
    found.weight_hash = process_group.broadcast(found.weight_hash if process_group.is_rank_0 else "")
    return found


def dtype_of_run(config: Config, verb: str, model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """Returns the dtype to compute in, which a run keeps when it is resumed."""
    choice = config.dtype
    if choice == "auto":
        recorded = open_run(config, verb).read(CONFIG)
        if config.shard or engine_name(config, device.type) != "transformers":
            choice = "checkpoint"
        elif recorded is not None:
            choice = recorded.get("dtype", "checkpoint")
    return computing_dtype(model, device, choice)


def _signed(config: Config, verb: str, loaded: LoadedModel) -> dict[str, object]:
    """Returns everything that decides what the run does, with hashes of the user's files."""
    signed = {"verb": verb, **config.signed(), "base_hash": loaded.weight_hash}
    if loaded.stored_dtypes:
        signed["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
    if verb != "measure":
        del signed["measure"]
    files = {
        "reward": [reward.rsplit(":", 1)[0] for reward in config.rewards],
        "task": [config.task.rsplit(":", 1)[0]] if ".py:" in config.task else [],
    }
    for name, paths in files.items():
        if contents := [Path(path).expanduser().read_bytes() for path in paths]:
            signed[f"{name}_hash"] = _hash(b"\0".join(contents))
    if config.data and config.reward:  # public data sets are not edited
        signed["data_hash"] = _hash(data_content(config.data, config.split))
    if config.history is not None:
        contents = [file.read_bytes() for file in known.files(config.history)]
        signed["history_hash"] = _hash(b"\0".join(contents))
    return signed


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
