"""A workbench on a tiny model, and fingerprints that show whether anything about a model was left changed."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_tokenizer
from torch import nn

from autolayer.core.config import Config
from autolayer.core.probe_plan import ProbePlan
from autolayer.core.run_folder import RunFolder
from autolayer.models.loading import LoadedModel
from autolayer.probes.context import ProbeContext
from autolayer.probes.shared_batch import make_fold
from autolayer.rollouts.engines.base import Engine
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks.base import Row, Task
from autolayer.training.optimizer import MasterAdamW
from autolayer.training.workbench import Workbench


def mean_id(prompts: list, completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A dense reward: any changed token changes it."""
    return [sum(ids) / len(ids) / 100 for ids in completion_ids]


def make_task(
    reward: Callable[..., Any] = mean_id,
    *,
    prompts: Mapping[str, Sequence[str]] | None = None,
    max_new_tokens: int = 5,
    is_well_formed: Callable[[str], bool] | None = None,
) -> Task:
    """Sums of two numbers, 24 in each split, or the given prompts."""
    sums = [f"{a}+{b}=" for a in range(8) for b in range(12)]
    prompts = prompts or {name: sums[i::4] for i, name in enumerate(("train", "probe", "select", "eval"))}
    splits: dict[str, list[Row]] = {name: [{"prompt": text} for text in texts] for name, texts in prompts.items()}
    return Task(name="test", splits=splits, reward=reward, max_new_tokens=max_new_tokens, is_well_formed=is_well_formed)


def make_bench(
    model: Any,
    folder: Path,
    task: Task | None = None,
    *,
    algorithm: str = "grpo",
    beta: float = 0.0,
    prompts_per_step: int = 4,
    group_size: int = 4,
    temperature: float = 1.0,
    steps: int | None = None,
    make_engine: Callable[..., Engine] = TransformersEngine,
) -> Workbench:
    loaded = LoadedModel(
        model=model,
        tokenizer=build_tokenizer(),
        name="test",
        num_layers=model.config.num_hidden_layers,
        device=torch.device("cpu"),
    )
    options: dict[str, Any] = {"algorithm": algorithm, "beta": beta, "temperature": temperature, "steps": steps}
    config = Config(model="random", prompts_per_step=prompts_per_step, group_size=group_size, **options)
    return Workbench(loaded, task or make_task(), config, RunFolder(folder), make_engine=make_engine)


PLAN = ProbePlan(
    fold_prompts=6,
    response_folds=3,
    response_prompts=6,
    cutoff_pairs=0,
)


def sample_folds(bench: Workbench, prompts: int = 6, num_folds: int = 3, group_size: int = 4) -> list[Rollouts]:
    """Rollouts on the first prompts of the `probe` split, the next ones for the next fold."""
    rows = bench.task.splits["probe"]
    return [
        bench.sample(
            rows[i * prompts : (i + 1) * prompts],
            [request_seed("fold", i, j) for j in range(prompts * group_size)],
            group_size,
        )
        for i in range(num_folds)
    ]


def make_context(
    bench: Workbench, layers: tuple[int, ...], plan: ProbePlan = PLAN, seed: int = 0, **options: Any
) -> ProbeContext:
    folds = [make_fold(bench, rollouts) for rollouts in sample_folds(bench, **options)]
    return ProbeContext(bench=bench, layers=layers, folds=folds, plan=plan, seed=seed)


def spied_gradients(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Filled with the float32 gradients of every optimizer step from now on, by name."""
    seen: dict[str, torch.Tensor] = {}
    step = MasterAdamW.step

    def spy(self: MasterAdamW, closure: Any = None) -> None:
        seen.update({name: m.grad.clone() for name, m in self.masters.items() if m.grad is not None})
        step(self, closure)

    monkeypatch.setattr(MasterAdamW, "step", spy)
    return seen


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit, dtype included."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


def differing(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name in left if not torch.equal(left[name], right[name])}


class Untouched:
    """Takes the state of a model and of the random generators, and checks later that it is the same."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.weights = weights_of(model)
        self.state = self._state()
        self.random = self._random()

    def check(self, *, randomness: bool = True) -> None:
        assert_equal(self.weights, weights_of(self.model))
        for name, value in self._state().items():
            assert value == self.state[name], name
        if randomness:
            assert self._random() == self.random

    def _state(self) -> dict[str, Any]:
        modules = list(self.model.named_modules())
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "requires_grad": {name: p.requires_grad for name, p in self.model.named_parameters()},
            "gradients": {name: p.grad is None for name, p in self.model.named_parameters()},
            "parameter hooks": {
                name: (len(p._backward_hooks or ()), len(p._post_accumulate_grad_hooks or ()))
                for name, p in self.model.named_parameters()
            },
            "hooks": {name: [len(getattr(m, kind)) for kind in kinds] for name, m in modules},
            "forward": {name: id(m.__dict__.get("forward")) for name, m in modules if "forward" in m.__dict__},
            "training": {name: m.training for name, m in modules},
            "config": self.model.config.to_dict(),
            "generation config": self.model.generation_config.to_dict(),
            "checkpointing": {name: getattr(m, "gradient_checkpointing", None) for name, m in modules},
        }

    @staticmethod
    def _random() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state()
        return (random.getstate(), kind, list(keys), rest, torch.get_rng_state().tolist())


def plain_log_probs(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each completion token by an ordinary forward of one sequence, without padding."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
