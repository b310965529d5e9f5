"""The one trainer: TRL's GRPOTrainer, subclassed once, for bursts, rungs, final and full-parameter runs alike.

What the subclass changes: rollouts come from the injected engine with one seed per request; the KL reference is the
same model with the base weights in, micro-batch by micro-batch (reference.py); every step reseeds, so a step depends
on nothing but the checkpoint it starts from; activation checkpointing is off, so the backward pass stops at the lowest
trained layer.
Left out on purpose: warm-up and decay. An arm may be paused after any step and must not know where its run ends.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.core.arms import Arm
from autolayer.core.config import GiGPOConfig
from autolayer.distributed.process_group import Ranks
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.sampler import sample_share
from autolayer.rollouts.types import Rollouts, request_seed
from autolayer.tasks.base import Row, Task
from autolayer.training.gigpo import step_advantages
from autolayer.training.kl_reference import Reference
from autolayer.training.optimizer import MasterAdamW

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402  (reads the variable above)
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402

LOSS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "gigpo": {"loss_type": "grpo", "scale_rewards": "group"},  # the advantages are replaced
}
"""GRPO: arXiv 2402.03300, eq. 3. Dr. GRPO: arXiv 2503.20783; no deviation, constant length. GiGPO: arXiv 2505.10978,
eq. 9, GRPO's loss with an advantage for every step of an episode (gigpo.py). TRL's default is DAPO."""


class LayerGRPOTrainer(GRPOTrainer):
    """Trains whatever requires gradients for a number of steps, starting at the arm's step.

    Args:
        rows: The prompts of these steps in order, `prompts_per_step` for each.
        micro_batch: Sequences in one forward and backward pass, at the most. It must not depend on where a segment was
            cut.
        beta: Weight of the KL term.
        reference: Of the KL term; needed when `beta` > 0.
        on_rollouts: Called with every step's rollouts, of all processes, after they are rewarded.
        ranks: The processes that train together; the optimizer averages their gradients.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        rows: Sequence[Row],
        arm: Arm,
        num_steps: int,
        group_size: int,
        algorithm: str,
        gigpo: GiGPOConfig,
        beta: float,
        engine: Engine,
        optimizer: MasterAdamW,
        micro_batch: int,
        reference: Reference | None,
        on_rollouts: Callable[[Rollouts], None],
        ranks: Ranks,
    ) -> None:
        self.task = task
        self.rows = list(rows)
        self.arm = arm
        self.engine = engine
        self.reference = reference
        self.on_rollouts = on_rollouts
        self.ranks = ranks
        self.group_size = group_size
        self.gigpo = gigpo if algorithm == "gigpo" else None
        self.pending: Rollouts | None = None
        self.sampling_seconds = 0.0
        """Time spent on rollouts, their rewards included."""
        self.had_advantage = False
        """Whether any token so far had an advantage: without, a zero gradient is right."""
        prompts_per_step = len(self.rows) // num_steps
        batch = prompts_per_step * group_size
        share = batch // ranks.num
        micro_batch = largest_divisor(share, micro_batch)
        self._scratch = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            output_dir=self._scratch.name,
            max_steps=num_steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=share // micro_batch,
            steps_per_generation=share // micro_batch,
            num_generations=group_size,
            max_completion_length=task.max_new_tokens * task.max_turns,  # the constant that Dr. GRPO divides by
            temperature=engine.temperature,
            learning_rate=arm.learning_rate,
            beta=0.0,
            max_grad_norm=0.0,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            use_cpu=model.device.type == "cpu",
            bf16=False,
            fp16=False,
            seed=arm.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            router_aux_loss_coef=0.0,
            vllm_importance_sampling_mode="token_truncate",
            **LOSS[algorithm],
        )
        # One process has one device, also where it sees more: transformers would spread each batch over them.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        super().__init__(
            model=model,
            reward_funcs=self._reward,
            args=arguments,
            # TRL passes prompts on to `_rollout`, which needs no more than their place.
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in range(len(self.rows))]}),
            processing_class=tokenizer,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, _constant)),
            rollout_func=self._rollout,
        )
        self.remove_callback(PrinterCallback)
        if ranks.num > 1:  # or it would be wrapped in DDP, whose reduction our gradient hooks come before
            self.accelerator.prepare_model = lambda model, *args, **kwargs: model
        assert reference is not None or not beta
        self.beta = beta  # set after construction: TRL would load a second model from disk for the reference
        # All that TRL still asks this for is whether completions come with log-probabilities to correct by.
        self.use_vllm = engine.has_own_weights
        self.effective: list[float] = []
        """For each batch, the effective sample size of the importance weights, as a share of its tokens."""

    def _rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's rollout hook: prompts come repeated, group by group; one seed per completion."""
        step = self.arm.step + self.state.global_step
        # Everything random in this step follows from (seed, step): resuming replays it bitwise.
        seed_everything(request_seed(self.arm.seed, "step", step) % 2**32)
        first = self.ranks.index * len(prompts)
        # With several processes a group may lie across two of them; then only the advantages know of it.
        group_size = self.group_size if len(prompts) % self.group_size == 0 else 1
        seeds = [request_seed(self.arm.seed, "train", step, first + index) for index in range(len(prompts))]
        started = time.perf_counter()
        rows = [self.rows[int(prompt)] for prompt in prompts]
        parts = sample_share(self.ranks, self.engine, self.task, rows, seeds, 1)
        everyone = Rollouts.joined(parts, self.group_size)
        self.sampling_seconds += time.perf_counter() - started
        self.pending = everyone.between(first, first + len(prompts), group_size)
        self.on_rollouts(everyone)
        masks = {} if self.task.environment is None else {"env_mask": self.pending.own_masks()}
        return {
            "prompt_ids": self.pending.prompt_ids,
            "completion_ids": self.pending.completion_ids,
            "logprobs": self.pending.log_probs if self.engine.has_own_weights else None,
            **masks,
        }

    def _reward(self, prompts: list, completions: list, **kwargs: Any) -> list[float | None]:
        """The rewards that came with the rollouts."""
        assert self.pending is not None, "rollouts come before their rewards"
        # Advantages do not know a group's mean, so where it is so large that TRL's float32 would round the
        # differences beside it away, it is taken out first.
        grouped = self.pending.rewards_P_G()
        mean = grouped.mean(1, keepdim=True)
        return torch.where(mean.abs() > 1e3 * grouped.std(1, keepdim=True), grouped - mean, grouped).flatten().tolist()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._last_loaded_step = self.state.global_step  # the engine follows the weights by itself
        self.beta, beta = 0.0, self.beta  # the reference's pass comes with the policy's (`_compute_loss`)
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
        if (ratio := output.get("importance_sampling_ratio")) is not None:
            own = output["completion_mask"] * output.get("tool_mask", 1)
            self.effective.append(effective_share(ratio, own))
        assert self.pending is not None
        if self.gigpo is None:
            rewards_P_G = self.pending.rewards_P_G()  # their deviation is rarely 0 to the last bit
            self.had_advantage |= bool((rewards_P_G.amax(1) > rewards_P_G.amin(1)).any())
        else:
            output["advantages"] = self._step_advantages(self.pending, output["completion_ids"].shape[1])
            self.had_advantage |= bool(output["advantages"].any())
        return output

    def _step_advantages(self, rollouts: Rollouts, width: int) -> torch.Tensor:
        """GiGPO's advantage of every token, (B, T); a group may lie across processes."""
        assert self.gigpo is not None
        everywhere = gather_object([tuple(turns) for turns in rollouts.turns])
        first = self.accelerator.process_index * len(rollouts.turns)
        of_turns = step_advantages(everywhere, self.group_size, self.gigpo)[first : first + len(rollouts.turns)]
        advantages_B_T = torch.zeros(len(rollouts.turns), width, device=self.accelerator.device)
        for row, (turns, values) in enumerate(zip(rollouts.turns, of_turns, strict=True)):
            for turn, value in zip(turns, values, strict=True):
                advantages_B_T[row, turn.start : turn.stop] = value
        return advantages_B_T

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.beta or self.reference is None:
            return super()._compute_loss(model, inputs)
        ids, mask = (
            torch.cat([inputs[f"prompt_{what}"], inputs[f"completion_{what}"]], dim=1) for what in ("ids", "mask")
        )
        with self.reference.swapped_in():
            log_probs, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])
        with self.reference.shared():
            return super()._compute_loss(model, {**inputs, "ref_per_token_logps": log_probs})

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL pads prompts on the left and leaves positions to the model; one with learned positions (GPT-2) would
        # count the padding, and train at other positions than it generates at.
        hook = model.register_forward_pre_hook(_positions, with_kwargs=True)
        try:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        finally:
            hook.remove()

    def _move_model_to_device(self, *_: Any) -> None:
        """It is there; a move would let go of the blocks that shards.py holds whole."""

    def close(self) -> None:
        """Removes the scratch folder that TRL asks for."""
        self._scratch.cleanup()


class EachStep(TrainerCallback):
    """Calls back after every optimizer step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.call()


def _positions(model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Counts positions from each sequence's first real token. Rotary positions are relative: nothing to mend there."""
    rotary = getattr(model.config.get_text_config(), "rope_parameters", None)  # pyright: ignore
    if rotary is None and "position_ids" in inspect.signature(type(model).forward).parameters:
        kwargs["position_ids"] = (kwargs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return args, kwargs


def effective_share(weights_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> float:
    """(sum w)^2 / sum w^2 over the number of tokens: 1 where sampling and training agree (Kish 1965)."""
    weights = weights_B_T[mask_B_T.bool()].double()
    return float(weights.sum() ** 2 / (weights.square().sum() * weights.numel())) if weights.numel() else 1.0


def _constant(_: int) -> float:
    return 1.0


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return next(d for d in range(min(number, max(1, at_most)), 0, -1) if number % d == 0)


def seed_everything(seed: int) -> None:
    """Seeds the random generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Gives the caller's random state back: TRL reseeds Python, numpy and torch."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Takes dropout out, and gives the model's mode and settings back: trainers change the cache and end tokens, too.

    The policy that is trained must be the one that generates. TRL takes out `nn.Dropout` only; many models keep the
    probability as a number (`attention_dropout`, OPT's `dropout` and `layerdrop`).
    """
    modes = [(module, module.training) for module in model.modules()]
    dropouts = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, torch.nn.Dropout)))
    ]
    settings = [(held, dict(vars(held))) for held in (model.config, model.generation_config) if held is not None]
    try:
        for module, name, _ in dropouts:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, value in dropouts:
            setattr(module, name, value)
        for held, values in settings:
            vars(held).clear()
            vars(held).update(values)


@contextlib.contextmanager
def quiet_trainer() -> Iterator[None]:
    """Keeps TRL's and accelerate's advice about defaults off the terminal; errors still raise."""
    names = ("transformers", "trl", "accelerate")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
