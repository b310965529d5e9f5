"""The workbench: sole owner of the model, its rollout engine, the base copies of the layers and the weights' version.

Outside a `weights(...)` block the model holds the base, bit for bit, so one arm cannot leak into another. Everything
random follows from seeds that name what it is for; nothing here depends on what ran before.

With several processes every rank has a workbench of its own and calls the same methods with the same arguments.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch

from autolayer.core.arms import Arm
from autolayer.core.config import GiGPOConfig
from autolayer.core.costs import Cost, CostModel
from autolayer.core.layer_set import Layers
from autolayer.core.run_folder import RunFolder
from autolayer.distributed.fsdp import is_sharded, whole
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models import lora
from autolayer.models.layers import find_layers, head_ratio, layer_parameters, linear_module_names
from autolayer.models.loading import LoadedModel
from autolayer.rollouts import evaluation
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.evaluation import Evaluation
from autolayer.rollouts.sampler import sample_on_all_ranks
from autolayer.rollouts.types import Rollouts, encode_prompts
from autolayer.tasks.base import Row, Task
from autolayer.training.accounting import Account
from autolayer.training.checkpoints import Checkpoints
from autolayer.training.micro_batching import MicroBatching
from autolayer.training.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings that all trainings of a run share."""

    algorithm: str
    prompts_per_step: int
    group_size: int
    beta: float
    gigpo: GiGPOConfig = field(default_factory=GiGPOConfig)
    activation_checkpointing: bool = False
    """True to recompute activations from the start, not only when memory runs out."""


class Workbench:
    """One model and one engine for any number of arms.

    Args:
        loaded: The model with the base weights in, and its tokenizer.
        task: Prompts and reward.
        settings: Of all trainings.
        folder: The run folder.
        temperature: Of sampling.
        make_engine: Makes the rollout engine.
        process_group: The ranks of the run.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        settings: TrainSettings,
        folder: RunFolder,
        *,
        temperature: float,
        make_engine: Callable[..., Engine] = TransformersEngine,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.process_group = process_group or ProcessGroup()
        self.loaded, self.task, self.settings, self.folder = loaded, task, settings, folder
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.model.requires_grad_(False)
        self.engine = make_engine(
            self.model,
            self.tokenizer,
            max_new_tokens=task.max_new_tokens,
            temperature=temperature,
            max_context=task.max_context,
        )
        self.layers = find_layers(self.model)
        self.version = 0
        """Counts every change of the weights."""
        self._base: dict[str, torch.Tensor] = {}
        sharded = is_sharded(self.model)
        self.costs = CostModel(num_layers=len(self.layers), head_ratio=head_ratio(self.model))
        self.account = Account(self.costs, num_samplers=1 if sharded else self.process_group.world_size)
        self.checkpoints = Checkpoints(folder.path, self.process_group)
        self.micro_batching = MicroBatching(
            self.engine, lambda: self.longest, self.process_group, checkpointing=settings.activation_checkpointing
        )
        self.scorer = Scorer(self.model, self.engine, self.micro_batching, self.account, self.process_group)
        self.effective: list[float] = []
        """Effective sample size of each training batch as a share of its tokens, if the engine has its own numerics."""
        self.process_group.passes_are_collective = sharded

    # Weights

    def parameters(self, layers: Layers) -> dict[str, torch.nn.Parameter]:
        """Returns the trainable parameters of these layers by full name."""
        return layer_parameters(self.model, layers)

    def base(self, layers: Layers) -> dict[str, torch.Tensor]:
        """Returns host copies of the base weights of these layers, which are made before the first change."""
        with whole(self.model, layers):
            for name, parameter in self.parameters(layers).items():
                if name not in self._base:
                    self._base[name] = parameter.detach().to("cpu", copy=True)
            return {name: self._base[name] for name in self.parameters(layers)}

    def copy_in(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes weights into the model. Only this method and the optimizer do so."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.model.get_parameter(name).copy_(tensor)
        self.mark_changed(tensors)

    def mark_changed(self, names: Iterable[str]) -> None:
        """Records that these parameters have changed, so that an engine with its own weights loads them again."""
        self.version += 1
        self.engine.mark_changed(names)

    @contextlib.contextmanager
    def weights(self, layers: Layers, tensors: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
        """Puts the given weights into these layers while the block runs, and always restores the base weights."""
        with whole(self.model, layers):
            base = self.base(layers)
            try:
                if tensors is not None:
                    self.copy_in(tensors)
                yield
            finally:
                self.copy_in(base)

    def arm_weights(self, arm: Arm) -> dict[str, torch.Tensor] | None:
        """Returns an arm's trained weights in the module's dtype; None at step 0, which is the base."""
        if arm.checkpoint is None:
            return None
        dtypes = {name: parameter.dtype for name, parameter in self.parameters(arm.layers).items()}
        tensors = self.checkpoints.read(arm)
        return {name: tensors[f"master:{name}"].to(dtype) for name, dtype in dtypes.items()}

    def adapt(self, layers: Sequence[int], seed: int) -> None:
        """Adds LoRA adapters, which are from now on what is trained of a layer. Untrained they compute nothing."""
        lora.add_adapters(self.model, linear_module_names(self.model, layers), seed)
        self._base.clear()  # weights under an adapter have other names

    # Rollouts

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest training prompt and a whole completion, or of the longest episode there can be."""
        if self.task.environment is not None:
            return self.engine.max_context
        rows = self.task.splits["train"]
        prompts = encode_prompts(self.tokenizer, rows, dict(self.task.chat_template_kwargs))
        return max(map(len, prompts)) + self.task.max_new_tokens

    def sample(self, rows: Sequence[Row], seeds: Sequence[int], group_size: int = 1) -> Rollouts:
        """Samples and rewards completions with the weights now in the model.

        Args:
            rows: The prompts.
            seeds: One for each completion.
            group_size: Completions of a prompt.
        """
        started = time.perf_counter()
        rollouts = sample_on_all_ranks(self.process_group, self.engine, self.task, rows, seeds, group_size)
        self.account.charge(self.account.generation(rollouts), time.perf_counter() - started)
        return rollouts

    def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> tuple[float, ...]:
        """Returns the reward per item of a split; base and arms get the same items and noise."""
        return self.examine(split, num_items, seed=seed, arm=arm).rewards_I

    def examine(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> Evaluation:
        """Evaluates the base or an arm, with how many completions were cut off or badly formed."""
        asked = evaluation.requests(self.task, split, num_items, seed)
        with self._weights_of(arm), self.engine.decoding(asked.decoding):
            rollouts = self.sample(asked.rows, asked.seeds)
        return evaluation.evaluation(self.task, asked, rollouts)

    def _weights_of(self, arm: Arm | None) -> AbstractContextManager[None]:
        if arm is None or arm.checkpoint is None:
            return contextlib.nullcontext()
        return self.weights(arm.layers, self.arm_weights(arm))

    @property
    def spent(self) -> Cost:
        """Everything that was charged in this process."""
        return self.account.spent
