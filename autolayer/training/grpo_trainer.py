"""The trainer of every run: TRL's GRPOTrainer, subclassed once for rungs, final and full-parameter runs.

Rollouts come from the given engine, with one seed per request. Every step reseeds, so a step depends only on the
checkpoint it starts from. TRL's activation checkpointing is off, so the backward pass stops at the lowest trained
layer. Warm-up and decay of the learning rate are left out on purpose, because an arm may pause after any step and the
length of its training is not known in advance.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from autolayer.core.arms import Arm
from autolayer.core.layer_set import Layers
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.rollouts.sampler import sample_on_all_ranks
from autolayer.tasks.base import Row
from autolayer.training.advantages import centred_rewards, has_advantage, step_advantages
from autolayer.training.kl_reference import KLReference
from autolayer.training.optimizer import MasterAdamW
from autolayer.training.trl_compat import AdaptedGRPOTrainer, GRPOConfig
from autolayer.training.workbench import Workbench

LOSS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "gigpo": {"loss_type": "grpo", "scale_rewards": "group"},  # with its own advantages (`adjust_batch`)
}
"""Maps an algorithm to the arguments of TRL's GRPOConfig that select its loss; TRL's default would be DAPO.

GRPO: arXiv 2402.03300, eq. 3. Dr. GRPO: arXiv 2503.20783, which does not divide advantages by the standard deviation,
and divides the loss by a constant length. GiGPO: arXiv 2505.10978, eq. 9, which is GRPO's loss with an advantage for
every step of an episode (advantages.py).
"""


class LayerGRPOTrainer(AdaptedGRPOTrainer):
    """Trains the parameters that require gradients for some steps, with the run's settings, starting at the arm's step.

    The model holds the arm's weights. `rows` are the prompts of all steps in order, equally many for each step. The
    optimizer averages gradients over the ranks. `on_rollouts` gets the rewarded rollouts of all ranks at every step.
    """

    def __init__(
        self,
        *,
        bench: Workbench,
        arm: Arm,
        rows: Sequence[Row],
        num_steps: int,
        optimizer: MasterAdamW,
        on_rollouts: Callable[[Rollouts], None],
    ) -> None:
        config = bench.config
        self.process_group, self.engine, self.task = bench.process_group, bench.engine, bench.task
        self.arm, self.rows, self.on_rollouts = arm, list(rows), on_rollouts
        self.group_size, self.full_steps = config.group_size, config.steps or 0
        self.prompts_per_step = len(self.rows) // num_steps
        self.gigpo = config.gigpo if config.algorithm == "gigpo" else None
        self.rollouts: Rollouts | None = None
        """The rollouts of the current step, of all ranks."""
        self.sampling_seconds = 0.0
        self.had_advantage = False
        """True if any token on this rank has had a non-zero advantage; until then a zero gradient is correct."""
        self.effective: list[float] = []
        share = self.prompts_per_step * self.group_size // self.process_group.world_size
        self.own = slice(share * self.process_group.rank, share * (self.process_group.rank + 1))
        """Slice of a step's completions that this rank trains on. A group may be divided between ranks."""
        # The longest sequence of the task decides, not that of these steps, so a resumed run has the same batches.
        micro_batch = largest_divisor(share, bench.micro_batching.sequences(bench.longest))
        self._scratch = tempfile.TemporaryDirectory()
        super().__init__(
            model=bench.model,
            processing_class=bench.tokenizer,
            reward_funcs=self._reward,
            rollout_func=self._rollout,
            num_prompts=len(self.rows),
            beta=config.beta,
            reference=kl_reference(bench, arm.layers),
            has_sampled_log_probs=self.engine.has_own_weights,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
            args=GRPOConfig(
                output_dir=self._scratch.name,
                max_steps=num_steps,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=share // micro_batch,
                steps_per_generation=share // micro_batch,
                num_generations=self.group_size,
                # The constant that Dr. GRPO divides by.
                max_completion_length=self.task.max_new_tokens * self.task.max_turns,
                temperature=self.engine.temperature,
                learning_rate=arm.learning_rate,
                beta=0.0,
                max_grad_norm=0.0,
                shuffle_dataset=False,
                gradient_checkpointing=False,
                disable_dropout=True,
                use_cpu=bench.model.device.type == "cpu",
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
                **LOSS[config.algorithm],
            ),
        )

    def adjust_batch(self, batch: dict[str, Any]) -> None:
        """Replaces the advantages if the algorithm is GiGPO, and updates `effective` and `had_advantage`."""
        assert self.rollouts is not None
        if (weights := self.importance_weights(batch)) is not None:
            self.effective.append(effective_share(*weights))
        if self.gigpo is None:
            self.had_advantage |= has_advantage(self.rollouts, self.own)
        else:
            batch["advantages"] = self._step_advantages(self.rollouts, batch["completion_ids"])
            self.had_advantage |= bool(batch["advantages"].any())

    def close(self) -> None:
        """Removes the output folder that TRL needs."""
        self._scratch.cleanup()

    def _rollout(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Samples the step's completions. TRL calls it on every rank with the rank's share of the repeated prompts."""
        step = self.arm.step + self.state.global_step
        # Every random number of this step follows from (seed, step), so a resumed run repeats it bit for bit.
        set_seed(request_seed(self.arm.seed, "step", step) % 2**32)
        first = self.state.global_step * self.prompts_per_step
        rows = self.rows[first : first + self.prompts_per_step]
        indices = [index for index in range(first, first + self.prompts_per_step) for _ in range(self.group_size)]
        assert list(map(int, prompts)) == indices[self.own], "TRL must give each rank the next prompts in order"
        seeds = [request_seed(self.arm.seed, "train", step, index) for index in range(len(indices))]
        started = time.perf_counter()
        task = self.task.at(replace(self.state, global_step=step, max_steps=self.full_steps))
        self.rollouts = sample_on_all_ranks(self.process_group, self.engine, task, rows, seeds, self.group_size)
        self.sampling_seconds += time.perf_counter() - started
        self.on_rollouts(self.rollouts)
        own = self.rollouts.ungrouped(self.own)
        masks = {} if self.task.environment is None else {"env_mask": own.own_masks()}
        return {
            "prompt_ids": own.prompt_ids,
            "completion_ids": own.completion_ids,
            "logprobs": own.log_probs if self.engine.has_own_weights else None,
            **masks,
        }

    def _reward(self, prompts: list, completions: list, **kwargs: Any) -> list[float]:
        assert self.rollouts is not None, "TRL must sample before it asks for rewards"
        return centred_rewards(self.rollouts)[self.own]

    def _step_advantages(self, rollouts: Rollouts, completion_ids: torch.Tensor) -> torch.Tensor:
        """Returns GiGPO's advantage of every token of this rank, (B, T)."""
        assert self.gigpo is not None
        turn_advantages = step_advantages(rollouts.turns, self.group_size, self.gigpo)[self.own]
        advantages_B_T = torch.zeros(completion_ids.shape, device=completion_ids.device)
        for row, (turns, values) in enumerate(zip(rollouts.turns[self.own], turn_advantages, strict=True)):
            for turn, value in zip(turns, values, strict=True):
                advantages_B_T[row, turn.start : turn.stop] = value
        return advantages_B_T


def kl_reference(bench: Workbench, layers: Layers) -> KLReference | None:
    """Returns the KL reference of some trained layers; None when beta is 0. Call it on every rank."""
    if not bench.config.beta:
        return None
    return KLReference(bench.model, bench.parameters(layers), bench.base(layers), bench.scorer.shared_below(layers))


class EachStep(TrainerCallback):
    """Calls a function after every optimizer step; training stops if it returns True."""

    def __init__(self, call: Callable[[], bool | None]) -> None:
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback.on_step_end`."""
        control.should_training_stop |= bool(self.call())


def effective_share(weights_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> float:
    """Returns the effective sample size (sum w)^2 / sum w^2 (Kish 1965) divided by the number of tokens in the mask.

    It is 1 if sampling and training give all tokens the same probabilities.
    """
    weights = weights_B_T[mask_B_T.bool()].double()
    return float(weights.sum() ** 2 / (weights.square().sum() * weights.numel())) if weights.numel() else 1.0


def largest_divisor(number: int, at_most: int) -> int:
    """Returns the largest divisor of `number` that is not above `at_most`."""
    return next(d for d in range(min(number, max(1, at_most)), 0, -1) if number % d == 0)
