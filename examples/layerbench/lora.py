"""LoRA on every linear map of every layer (PEFT, rank 16), by the trainer that trains the layers: a baseline.

The same prompts, seeds, steps and rates as the arms of `autolayer measure`, every rate for all steps, the best on
`select`. A rate that diverges is out.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import RATES, Environment
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from autolayer.arms import Arm
from autolayer.config import from_dict
from autolayer.errors import TrainingError
from autolayer.optimizer import MasterAdamW
from autolayer.prepare import prepare
from autolayer.trainer import LayerGRPOTrainer, own_randomness, own_settings, quiet_trainer
from autolayer.workbench import Workbench

RANK, ALPHA = 16, 32


def gains(environment: Environment, bases: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Gain over the base on the `eval` items for each seed, and the rate that was chosen."""
    with tempfile.TemporaryDirectory() as scratch:
        config = from_dict({**environment.options(bases), "out": f"{scratch}/run"})
        with prepare(config) as stages:
            bench, num_eval, steps = stages.bench, stages.config.num_eval or 0, environment.steps
            base_I = np.array(bench.evaluate("eval", num_eval, seed=0))
            linear = [name for name, m in bench.model.named_modules() if isinstance(m, nn.Linear) and "layers" in name]
            adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear, lora_dropout=0.0)
            inject_adapter_in_model(adapter, bench.model)
            start = {n: p.detach().clone() for n, p in bench.model.named_parameters() if "lora_" in n}

            def after(rate: float, seed: int) -> tuple[float, float]:
                """Score on `select`, and gain on `eval`."""
                with torch.no_grad():
                    for name, tensor in start.items():
                        bench.model.get_parameter(name).copy_(tensor)
                _train(bench, list(start), Arm(layers="full", learning_rate=rate, seed=seed), steps)
                score = np.mean(bench.evaluate("select", stages.config.search.num_select, seed=0))
                return float(score), float(np.mean(np.array(bench.evaluate("eval", num_eval, seed=0)) - base_I))

            first = {}
            for rate in RATES:
                with contextlib.suppress(TrainingError):
                    first[rate] = after(rate, seeds[0])
            best = max(first, key=lambda rate: first[rate][0])
            values = [first[best][1]] + [after(best, seed)[1] for seed in seeds[1:]]
    return {"gains": values, "learning_rate": best, "rank": RANK, "rates": RATES}


def _train(bench: Workbench, names: list[str], arm: Arm, steps: int) -> None:
    parameters = {name: bench.model.get_parameter(name) for name in names}
    with own_randomness(), own_settings(bench.model), quiet_trainer():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimizer = MasterAdamW(parameters, lr=arm.learning_rate)
        try:
            trainer = LayerGRPOTrainer(
                model=bench.model, tokenizer=bench.tokenizer, task=bench.task,
                rows=bench.train_rows(arm.seed, 0, steps, bench.settings.prompts_per_step), arm=arm, num_steps=steps,
                group_size=bench.settings.group_size, algorithm=bench.settings.algorithm, beta=0.0,
                engine=bench.engine, optimizer=optimizer, longest=bench.longest,
                swap_in_base=lambda: own_randomness(), on_rollouts=lambda rollouts: None,
            )  # fmt: skip
            trainer.train()
            trainer.close()
        finally:
            optimizer.close()
            bench.model.requires_grad_(False)
