"""The workbench: sole owner of the model, its rollout engine, the base weights and the bill.

Outside a `weights(...)` block the model holds the base, bit for bit, so one arm cannot leak into another.
Everything random follows from seeds that name what it is for; nothing here depends on what ran before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from autolayer.core.arms import Arm
from autolayer.core.config import GiGPOConfig
from autolayer.core.costs import Cost, CostModel
from autolayer.core.errors import TrainingError
from autolayer.core.layer_set import Layers
from autolayer.core.run_folder import RunFolder
from autolayer.distributed.fsdp import gather, in_step, is_sharded, whole
from autolayer.distributed.process_group import Ranks
from autolayer.models import lora
from autolayer.models.activation_checkpointing import checkpoint_activations
from autolayer.models.layers import find_layers, head_ratio, layer_parameters, linear_module_names
from autolayer.models.loading import LoadedModel
from autolayer.rollouts import evaluation
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.evaluation import Evaluation
from autolayer.rollouts.sampler import in_order, sample, sample_share
from autolayer.rollouts.types import Rollouts, encode_prompts
from autolayer.tasks.base import Row, Task
from autolayer.training import checkpoints
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.micro_batching import Passes
from autolayer.training.partial_forward import Boundary, any_batch, can_enter
from autolayer.training.train_arm import Segment, train_segment

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What every training segment of a run shares."""

    algorithm: str
    prompts_per_step: int
    group_size: int
    beta: float
    gigpo: GiGPOConfig = field(default_factory=GiGPOConfig)
    recompute: bool = False
    """Recompute activations in the backward pass from the start, not only when memory runs out."""


class Workbench:
    """One model, one engine, any number of arms."""

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        settings: TrainSettings,
        folder: RunFolder,
        *,
        temperature: float,
        make_engine: Callable[..., Engine] = TransformersEngine,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
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
        self.costs = CostModel(num_layers=len(self.layers), head_ratio=head_ratio(self.model))
        self._training = False
        """All processes train, and change their weights alike."""
        self.version = 0
        """Counts every change of the weights: what a rollout engine with its own copy has to follow."""
        self.spent = Cost()
        self.training_seconds = self.training_layer_tokens = 0.0
        self.effective: list[float] = []
        """Effective sample size of each training batch, as a share, where the engine has numerics of its own."""
        self._base: dict[str, torch.Tensor] = {}
        self.passes = Passes(self.engine, lambda: self.longest, recompute=settings.recompute)

    # Weights

    def parameters(self, layers: Layers) -> dict[str, torch.nn.Parameter]:
        return layer_parameters(self.model, layers)

    def base(self, layers: Layers) -> dict[str, torch.Tensor]:
        """Host copies of the base weights of these layers, made before they are first changed."""
        with whole(self.model, layers):
            for name, parameter in self.parameters(layers).items():
                if name not in self._base:
                    self._base[name] = parameter.detach().to("cpu", copy=True)
            return {name: self._base[name] for name in self.parameters(layers)}

    def copy_in(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes weights into the model. Nothing else does, but the optimizer inside `train`."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.model.get_parameter(name).copy_(tensor)
        self.changed(tensors)

    def changed(self, names: Iterable[str]) -> None:
        """These parameters have other values now: what a rollout engine with its own copy has to follow."""
        self.version += 1
        self.engine.mark_changed(names)
        if self.ranks.num > 1 and self.ranks.leads and not self._training and not is_sharded(self.model):
            self.ranks.order("receive", list(names))
            self.ranks.send([self.model.get_parameter(name).data for name in names])

    def adapt(self, layers: Sequence[int], seed: int) -> None:
        """From now on LoRA adapters are what is trained of a layer. They compute nothing until they are trained."""
        if self.ranks.leads:
            self.ranks.order("adapt", layers, seed)
        lora.add_adapters(self.model, linear_module_names(self.model, layers), seed)
        self._base.clear()  # weights under an adapter have other names

    @contextlib.contextmanager
    def weights(self, layers: Layers, tensors: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
        """The given weights inside, the base again outside, whatever happens."""
        with whole(self.model, layers):  # by all processes or by the leader alone, whatever each has kept of the base
            base = self.base(layers)
            try:
                if tensors is not None:
                    self.copy_in(tensors)
                yield
            finally:
                self.copy_in(base)

    def arm_weights(self, arm: Arm) -> dict[str, torch.Tensor] | None:
        """An arm's trained weights in the module's dtype; None at step 0, which is the base."""
        if arm.checkpoint is None:
            return None
        dtypes = {name: parameter.dtype for name, parameter in self.parameters(arm.layers).items()}
        tensors, _ = checkpoints.read(self.folder.path, arm)
        return {name: tensors[f"master:{name}"].to(dtype) for name, dtype in dtypes.items()}

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
        """Samples and rewards `group_size` completions for each row, with the weights now in the model."""
        started = time.perf_counter()
        if is_sharded(self.model):  # the leader samples alone
            rollouts = sample(self.engine, self.task, rows, seeds, group_size)
        else:
            if self.ranks.leads:
                self.ranks.order("sample", rows, seeds, group_size, self.engine.current_decoding, self.passes.sizes)
            own_seeds = self.ranks.share([seeds[i : i + group_size] for i in range(0, len(seeds), group_size)])
            rows, seeds = self.ranks.share(rows), [seed for group in own_seeds for seed in group]
            parts = sample_share(self.ranks, self.engine, self.task, rows, seeds, group_size)
            rollouts = Rollouts.joined(parts, group_size)
        self.charge(self.generation_cost(rollouts), time.perf_counter() - started)
        return rollouts

    def evaluate(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> tuple[float, ...]:
        """Returns the reward of each item of a split. The base and all arms get the same items and sampling noise."""
        return self.examine(split, num_items, seed=seed, arm=arm).rewards_I

    def examine(self, split: str, num_items: int, *, seed: int, arm: Arm | None = None) -> Evaluation:
        """Evaluates as `evaluate` does, and reports how many completions were cut off or badly formed."""
        asked = evaluation.requests(self.task, split, num_items, seed)
        tensors = None if arm is None else self.arm_weights(arm)
        held = contextlib.nullcontext() if arm is None or tensors is None else self.weights(arm.layers, tensors)
        with held, self.engine.decoding(asked.decoding):
            rollouts = self.sample(asked.rows, asked.seeds)
        return evaluation.evaluation(self.task, asked, rollouts)

    def score_batch(self, rollouts: Rollouts) -> ScoreBatch:
        return ScoreBatch.of(rollouts, self.engine.pad_token_id, self.model.device)

    def boundary(self, batch: ScoreBatch) -> Boundary:
        """For scoring a batch again and again with one layer changed; inside `scoring.scoring` only.

        A model whose blocks exchange more than a hidden state is always run whole.
        """
        return Boundary(self.model, self._micro_batches(batch), fixed=not self.enters)

    @cached_property
    def enters(self) -> bool:
        """Whether a forward pass can begin in the middle: tried by short passes, once, which are not charged."""
        with scoring(self.model, self.engine.temperature), torch.no_grad():
            return can_enter(self.model, any_batch(self.model))

    def shared_below(self, layers: Layers) -> int:
        """The block below which a policy with these layers trained and its reference run once for both."""
        return min(layers) if layers != "full" and self.enters else 0

    def log_probs(self, batch: ScoreBatch | Boundary) -> torch.Tensor:
        """Log-probabilities of the completions, (B, T - 1), by whole passes or from a boundary up.

        One forward pass for each micro-batch, which hooks see one by one. Inside `scoring.scoring` only.
        """
        started = time.perf_counter()
        boundary = batch if isinstance(batch, Boundary) else Boundary(self.model, self._micro_batches(batch))
        result = torch.cat(list(boundary.log_probs()))
        tokens = sum(int(part.attention_mask.sum()) for part in boundary.parts)
        self.charge(self.costs.forward(tokens, boundary.layer), time.perf_counter() - started)
        return result

    def _micro_batches(self, batch: ScoreBatch) -> list[ScoreBatch]:
        return [part for _, part in batch.split(self.passes.sequences(batch.input_ids.shape[1]))]

    def raise_boundary(self, boundary: Boundary, layer: int) -> None:
        """Takes a boundary to the input of a layer, by the weights now in the model."""
        started = time.perf_counter()
        run = boundary.move_to(layer)
        tokens = sum(int(part.attention_mask.sum()) for part in boundary.parts)
        self.charge(Cost(layer_tokens=tokens * run), time.perf_counter() - started)

    def forget(self, arm: Arm) -> None:
        """Deletes an arm's checkpoints: a burst has said what it had to say."""
        checkpoints.delete(self.folder.path, arm)

    # Training

    def train(
        self,
        arm: Arm,
        to_step: int,
        *,
        prompts_per_step: int | None = None,
        on_step: Callable[[float], None] | None = None,
    ) -> Segment:
        """Trains an arm on from its checkpoint, and saves the next one.

        Args:
            arm: What to train, from which step.
            to_step: Optimizer steps done when this returns.
            prompts_per_step: Fewer prompts than the run's, for cheap bursts.
            on_step: Called with each step's mean training reward.

        Returns:
            The advanced arm. A segment cut in two gives the same arm, bit for bit (on one machine).
        """
        told = 0

        def tell(step: int, reward: float) -> None:
            nonlocal told
            if on_step is not None and step > told:  # a segment may have to be begun again
                told = step
                on_step(reward)

        prompts_per_step = prompts_per_step or self.settings.prompts_per_step

        def together() -> Segment:
            what = (arm, to_step, prompts_per_step)
            self.ranks.order("train", train_segment, *what, self.passes.sizes)
            return self.in_every_process(train_segment, *what, tell)

        return self.passes.within_memory(together)

    def in_every_process(self, work: Callable[..., T], *arguments: Any) -> T:
        """A part of training, with the micro-batches that fit now; the leader has ordered it of all the others."""
        self._training = True
        try:
            with in_step(self.model):
                return work(self, *arguments)
        except BaseException as error:
            # What all were told of, or all find in their averaged gradients, all leave together. Whoever leaves alone
            # has to take the others along, or they would wait for it.
            if self.ranks.num > 1 and error is not self.ranks.told and not isinstance(error, TrainingError):
                raise self.ranks.broken(error) from error
            raise
        finally:
            self._training = False

    def keeping_little(self, layers: Layers) -> AbstractContextManager[None]:
        """Recomputes activations inside, where the run is to."""
        if not self.passes.recompute:
            return contextlib.nullcontext()
        return checkpoint_activations(self.model, 0 if layers == "full" else min(layers))

    def train_rows(self, seed: int, start: int, num_steps: int, prompts_per_step: int) -> list[Row]:
        """The prompts of some steps: a new seeded order of the train split every epoch."""
        wanted = range(start * prompts_per_step, (start + num_steps) * prompts_per_step)
        return in_order(self.task.splits["train"], seed, wanted)

    def training_cost(self, arm: Arm) -> Cost:
        """What all training steps of an arm cost."""
        return Cost() if arm.checkpoint is None else checkpoints.read(self.folder.path, arm)[1]

    # Several processes

    def follow(self) -> None:
        """In a process that does not lead: does what the leader orders, until the run is over."""
        while True:
            name, arguments = self.ranks.next_order()
            if name == "leave":
                return
            try:
                self._obey(name, arguments)
            except Exception as error:
                # What the leader gets as well, it handles: a reward that fails, training that diverges.
                if error is not self.ranks.told and not isinstance(error, TrainingError):
                    raise self.ranks.broken(error) from error

    def _obey(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "sample":
            *what, drawing, self.passes.sizes = arguments
            with self.engine.decoding(drawing):
                self.sample(*what)
        elif name == "train":
            work, *what, self.passes.sizes = arguments
            self.in_every_process(work, *what)
        elif name == "gather":
            gather(self.model, *arguments)
        elif name == "receive":
            self.ranks.send([self.model.get_parameter(name).data for name in arguments[0]])
            self.changed(arguments[0])
        else:
            assert name == "adapt", name
            self.adapt(*arguments)

    # The bill

    def charge(self, cost: Cost, seconds: float) -> None:
        self.spent += replace(cost, seconds=seconds)

    def time_training(self, layer_tokens: float, seconds: float) -> None:
        self.training_layer_tokens += layer_tokens
        self.training_seconds += seconds

    def exchange_rate(self) -> float:
        """What a generated token costs, in forward passes over one token, as measured in this process; 1 at least."""
        if not self.engine.tokens or not self.training_layer_tokens:
            return 1.0
        sampling = 1 if is_sharded(self.model) else self.ranks.num
        per_generated = self.engine.seconds / (self.engine.tokens * sampling)
        per_layer_token = self.training_seconds / self.training_layer_tokens
        return max(1.0, per_generated / (per_layer_token * (self.costs.num_layers + self.costs.head_ratio)))

    def generation_cost(self, rollouts: Rollouts) -> Cost:
        return self.costs.generate(sum(rollouts.prefilled), rollouts.num_generated)

    def cost_of_steps(self, steps: Sequence[Rollouts], layers: Layers) -> Cost:
        cost = Cost()
        for rollouts in steps:
            cost += self.generation_cost(rollouts) + self.update_cost(rollouts, layers)
        return cost

    def update_cost(self, rollouts: Rollouts, layers: Layers) -> Cost:
        """The passes of one training step."""
        cost = self.costs.train(rollouts.num_tokens, layers)
        if self.settings.beta:
            cost += self.costs.forward(rollouts.num_tokens, start=self.shared_below(layers))
        return cost
