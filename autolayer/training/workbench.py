"""The workbench: sole owner of the model, its rollout engine and the base copies of the layers.

Outside a `weights(...)` block the model holds the base weights, bit for bit, so arms cannot influence each other. Every
random choice has a seed derived from its purpose (`request_seed`), so no result depends on what ran before.

With several processes, every rank has its own workbench and calls the same methods with the same arguments.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import torch
from transformers import TrainerState

from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.costs import Cost, CostModel
from autolayer.core.layer_set import Layers
from autolayer.core.run_folder import RunFolder
from autolayer.distributed.fsdp import is_sharded, unsharded
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models import lora
from autolayer.models.layers import find_layers, head_ratio, layer_parameters, linear_module_names
from autolayer.models.loading import LoadedModel
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.evaluation import Evaluation, average_by_item, evaluation_requests
from autolayer.rollouts.prompts import encode_prompts
from autolayer.rollouts.rollouts import Rollouts
from autolayer.rollouts.sampler import sample_on_all_ranks
from autolayer.tasks.base import Row, Task
from autolayer.training.accounting import Account
from autolayer.training.checkpoints import Checkpoints
from autolayer.training.out_of_memory import MicroBatching
from autolayer.training.scorer import Scorer
from autolayer.training.training_log import TrainingLog


class Workbench:
    """Owns one model and one rollout engine, and swaps the weights of arms in and out of them.

    Args:
        loaded: The model with its base weights, and its tokenizer.
        task: The task, which gives prompts and rewards.
        config: The run's settings.
        folder: The run folder.
        make_engine: Creates the rollout engine; takes the arguments of `Engine`.
        process_group: The ranks of the run; default: this process alone.

    Example:
        with bench.weights(arm.layers, bench.arm_weights(arm)):
            rollouts = bench.sample(rows, seeds)  # sampled from the arm; the base weights are back afterwards
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        config: Config,
        folder: RunFolder,
        *,
        make_engine: Callable[..., Engine] = TransformersEngine,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.process_group = process_group or ProcessGroup()
        self.loaded, self.task, self.config, self.folder = loaded, task, config, folder
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.model.requires_grad_(False)
        self.engine = make_engine(
            self.model,
            self.tokenizer,
            max_new_tokens=task.max_new_tokens,
            temperature=config.temperature,
            max_context=task.max_context,
        )
        self.layers = find_layers(self.model)
        self._base: dict[str, torch.Tensor] = {}
        sharded = is_sharded(self.model)
        self.costs = CostModel(num_layers=len(self.layers), head_ratio=head_ratio(self.model))
        self.account = Account(self.costs, num_samplers=1 if sharded else self.process_group.world_size)
        self.checkpoints = Checkpoints(folder.path, self.process_group)
        self.log = TrainingLog(config, folder.path, self.tokenizer)
        self.micro_batching = MicroBatching(
            self.engine, lambda: self.longest, self.process_group, checkpointing=config.activation_checkpointing
        )
        self.scorer = Scorer(self.engine, self.micro_batching, self.account, self.process_group)
        self.effective: list[float] = []
        """Effective sample size of each training batch, as a share of its tokens; empty if the model itself samples."""
        self.process_group.passes_need_all_ranks = sharded

    # Weights

    def parameters(self, layers: Layers) -> dict[str, torch.nn.Parameter]:
        """Returns the trainable parameters of these layers by full name."""
        return layer_parameters(self.model, layers)

    def base(self, layers: Layers) -> dict[str, torch.Tensor]:
        """Returns copies of the base weights of these layers in host memory, by full name.

        The first call for a layer makes its copy, so it must come before the layer's weights change.
        """
        with unsharded(self.model, layers):
            for name, parameter in self.parameters(layers).items():
                if name not in self._base:
                    self._base[name] = self.loaded.as_stored(name, parameter.detach()).to("cpu", copy=True)
            return {name: self._base[name] for name in self.parameters(layers)}

    def copy_in(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes weights into the model, by full name. Nothing else but the optimizer changes weights."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.model.get_parameter(name).copy_(tensor)
        self.engine.mark_changed(tensors)

    @contextlib.contextmanager
    def weights(self, layers: Layers, tensors: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
        """Puts weights into some layers while the block runs, and restores their base weights when it ends.

        The block may change these layers. Weights are given by full name; None starts from the base weights.
        """
        with unsharded(self.model, layers):
            base = self.base(layers)
            try:
                if tensors is not None:
                    self.copy_in(tensors)
                yield
            finally:
                self.copy_in(base)

    def arm_weights(self, arm: Arm) -> dict[str, torch.Tensor] | None:
        """Returns an arm's trained weights by full name, in the base's dtype; None at step 0, which is the base."""
        if arm.checkpoint is None:
            return None
        tensors = self.checkpoints.read(arm)
        return {name: self.loaded.as_stored(name, tensors[f"master:{name}"]) for name in self.parameters(arm.layers)}

    def adapt(self, layers: Sequence[int], seed: int) -> None:
        """Adds LoRA adapters to some layers, whose adapters alone are trained from then on.

        The output of the model does not change, because a new adapter is zero.
        """
        lora.add_adapters(self.model, linear_module_names(self.model, layers), seed)
        self._base.clear()  # weights under an adapter have other names

    # Rollouts

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt and completion of training; with an environment, of the context."""
        if self.task.environment is not None:
            return self.engine.max_context
        rows = self.task.splits["train"]
        prompts = encode_prompts(self.tokenizer, rows, dict(self.task.chat_template_kwargs))
        return max(map(len, prompts)) + self.task.max_new_tokens

    def sample(self, rows: Sequence[Row], seeds: Sequence[int], group_size: int = 1, *, step: int = 0) -> Rollouts:
        """Samples and rewards completions with the weights now in the model; see `sample_on_all_ranks`.

        There is one row per prompt, P in all, and one seed per completion, P * `group_size` in all. A reward sees the
        step of training in `trainer_state`.
        """
        started = time.perf_counter()
        task = self.task.at(TrainerState(global_step=step, max_steps=self.config.steps or 0))
        rollouts = sample_on_all_ranks(self.process_group, self.engine, task, rows, seeds, group_size)
        self.account.charge(self.account.generation(rollouts), time.perf_counter() - started)
        return rollouts

    def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> Evaluation:
        """Evaluates an arm, or with None the base model, on items of a split.

        Calls with one seed use the same items and the same sampling noise, so their results can be compared in pairs.
        """
        requests = evaluation_requests(self.task, split, num_items, seed)
        weights: AbstractContextManager[None] = contextlib.nullcontext()
        if arm is not None and arm.checkpoint is not None:
            weights = self.weights(arm.layers, self.arm_weights(arm))
        with weights, self.engine.decoding(requests.decoding):
            # A reward that changes with the step judges every model as it does at the end of training.
            rollouts = self.sample(requests.rows, requests.seeds, step=self.config.steps or 0)
        return average_by_item(self.task, requests, rollouts)

    @property
    def spent(self) -> Cost:
        """The cost of all work so far."""
        return self.account.spent
