"""The one trainer: TRL's GRPOTrainer, subclassed once, for bursts, rungs, final and full-parameter runs alike.

What the subclass changes: rollouts come from the injected engine with one seed per request; the KL reference is
the same model with the base weights swapped in; every step reseeds, so a step depends on nothing but the
checkpoint it starts from; activation checkpointing is off, so the backward pass stops at the lowest trained layer.
Left out on purpose: warm-up and decay. An arm may be paused after any step and must not know where its run ends.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.arms import Arm
from autolayer.optimizer import MasterAdamW
from autolayer.rollouts import Rollouts, TransformersEngine, encode_prompts, request_seed
from autolayer.tasks.base import Row, Task

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402  (reads the variable above)
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402

LOSS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
}
"""GRPO: arXiv 2402.03300, eq. 3. Dr. GRPO: arXiv 2503.20783; no deviation, constant length. TRL's default is DAPO."""

MICRO_BATCH_TOKENS = 32_768
"""Tokens, padding included, in one forward and backward pass."""


class LayerGRPOTrainer(GRPOTrainer):
    """Trains whatever requires gradients for a number of steps, starting at `first_step` of the arm's run.

    Args:
        rows: The prompts of these steps in order, `prompts_per_step` for each.
        longest: Tokens of the task's longest prompt and a whole completion: micro-batches must not depend on where
            a segment was cut.
        swap_in_base: Context in which the trained parameters hold the base weights; needed when `beta` > 0.
        first_completions: The first step's completions, where another arm that started from the same weights with
            the same prompts and seeds has sampled them.
        on_rollouts: Called with every step's rollouts, after they are rewarded.
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
        beta: float,
        engine: TransformersEngine,
        optimizer: MasterAdamW,
        longest: int,
        swap_in_base: Callable[[], AbstractContextManager[None]],
        first_completions: Sequence[list[int]] | None = None,
        on_rollouts: Callable[[Rollouts], None],
    ) -> None:
        self.task = task
        self.rows = list(rows)
        self.arm = arm
        self.engine = engine
        self.swap_in_base = swap_in_base
        self.first_completions = first_completions
        self.on_rollouts = on_rollouts
        self.group_size = group_size
        self.pending: dict[str, Any] = {}
        prompts_per_step = len(self.rows) // num_steps
        batch = prompts_per_step * group_size
        prompt_ids = encode_prompts(tokenizer, self.rows, dict(task.chat_template_kwargs))
        self.ids_by_index = prompt_ids
        micro_batch = largest_divisor(batch, max(1, MICRO_BATCH_TOKENS // longest))
        self._scratch = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            output_dir=self._scratch.name,
            max_steps=num_steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=batch // micro_batch,
            steps_per_generation=batch // micro_batch,
            num_generations=group_size,
            max_completion_length=task.max_new_tokens,
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
            **LOSS[algorithm],
        )
        super().__init__(
            model=model,
            reward_funcs=self._reward,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [row["prompt"] for row in self.rows], "row": range(len(rows))}),
            processing_class=tokenizer,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, _constant)),
            rollout_func=self._rollout,
        )
        self.remove_callback(PrinterCallback)
        # Set after construction: TRL would load a second model from disk for the reference.
        self.beta = beta
        self.ref_model = _BASE if beta else None

    def _rollout(self, prompts: list, trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's rollout hook: prompts come repeated, group by group; one seed per completion."""
        step = self.arm.step + self.state.global_step
        # Everything random in this step follows from (seed, step): resuming replays it bitwise.
        seed_everything(request_seed(self.arm.seed, "step", step) % 2**32)
        first = self.state.global_step * len(prompts) // self.group_size
        prompt_ids = [self.ids_by_index[first + i // self.group_size] for i in range(len(prompts))]
        seeds = [request_seed(self.arm.seed, "train", step, i) for i in range(len(prompts))]
        known = self.first_completions if self.state.global_step == 0 else None
        completion_ids = self.engine.generate(prompt_ids, seeds) if known is None else list(map(list, known))
        self.pending = {"prompt_ids": prompt_ids, "completion_ids": completion_ids}
        return {**self.pending, "logprobs": None}

    def _reward(self, prompts: list, completions: list, completion_ids: list, row: list[int], **kwargs: Any) -> list:
        """The task's reward, checked, with the row's own columns (a Dataset would change their types)."""
        texts = self.engine.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        rewards = self.task.score([self.rows[index] for index in row], texts, completion_ids)
        self.on_rollouts(
            Rollouts(
                **self.pending,
                texts=texts,
                rewards=rewards,
                finished=[self.engine.finished(ids) for ids in completion_ids],
                group_size=self.group_size,
            )
        )
        # Advantages do not know a group's mean, so where it is so large that TRL's float32 would round the
        # differences beside it away, it is taken out first.
        grouped = torch.tensor(rewards, dtype=torch.float64).view(-1, self.group_size)
        mean = grouped.mean(1, keepdim=True)
        return torch.where(mean.abs() > 1e3 * grouped.std(1, keepdim=True), grouped - mean, grouped).flatten().tolist()

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        swapped = self.swap_in_base() if model is _BASE else contextlib.nullcontext()
        model = self.model if model is _BASE else model
        # TRL pads prompts on the left and leaves positions to the model; one with learned positions (GPT-2) would
        # count the padding, and train at other positions than it generates at.
        hook = model.register_forward_pre_hook(_positions, with_kwargs=True)
        try:
            with swapped:
                return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        finally:
            hook.remove()

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


class _Base:
    """Stands where TRL expects a reference model; the base weights are swapped into the policy instead."""


_BASE: Any = _Base()


def _constant(_: int) -> float:
    return 1.0


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return next(d for d in range(min(number, max(1, at_most)), 0, -1) if number % d == 0)


def seed_everything(seed: int) -> None:
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
