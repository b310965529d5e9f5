"""TRL's own trainer, as the reference that ours is compared with."""

from pathlib import Path
from typing import Any

import torch
from tiny_models import build_tokenizer
from transformers import set_seed
from workbench_helpers import (
    mean_id,
)

from autolayer.core.arms import Arm
from autolayer.models.layers import layer_parameters
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.prompts import encode_prompts
from autolayer.rollouts.rollouts import request_seed
from autolayer.training.train_arm import train_rows
from autolayer.training.trainer_side_effects import quiet_trainer
from autolayer.training.workbench import Workbench


def stock_trl(model: Any, bench: Workbench, arm: Arm, num_steps: int, scratch: Path) -> None:
    """Trains with TRL's own GRPOTrainer, torch's AdamW and, for beta > 0, TRL's own second model."""
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    config, group, tokenizer = bench.config, bench.config.group_size, build_tokenizer()
    rows = train_rows(bench, arm.seed, 0, num_steps)
    engine = TransformersEngine(
        model, tokenizer, max_new_tokens=bench.task.max_new_tokens, temperature=bench.engine.temperature
    )

    def rollout(prompts: list[str], stock: GRPOTrainer) -> dict[str, Any]:
        step = stock.state.global_step
        set_seed(request_seed(arm.seed, "step", step) % 2**32)
        prompt_ids = encode_prompts(tokenizer, [{"prompt": text} for text in prompts], {})
        seeds = [request_seed(arm.seed, "train", step, i) for i in range(len(prompts))]
        return {"prompt_ids": prompt_ids, "completion_ids": engine.generate(prompt_ids, seeds), "logprobs": None}

    from datasets import Dataset

    model.requires_grad_(False)
    trained = layer_parameters(model, arm.layers)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=arm.learning_rate, weight_decay=0.0)
    scale: Any = {"grpo": "group", "dr_grpo": "none"}[config.algorithm]
    with quiet_trainer():
        stock = GRPOTrainer(
            model=model,
            reward_funcs=mean_id,  # pyright: ignore
            args=GRPOConfig(
                output_dir=str(scratch),
                max_steps=num_steps,
                per_device_train_batch_size=(config.prompts_per_step or 0) * group,
                num_generations=group,
                max_completion_length=bench.task.max_new_tokens,
                temperature=bench.engine.temperature,
                beta=config.beta,
                loss_type=config.algorithm,
                scale_rewards=scale,
                max_grad_norm=1.0,
                shuffle_dataset=False,
                activation_checkpointing=False,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                model_init_kwargs=None,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
            rollout_func=rollout,
        )
        assert (stock.ref_model is not None) == (config.beta > 0)
        stock.train()
