"""RealBench: which pretrained model is trained on what, by which algorithm."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autolayer.core.layer_set import Layers

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One pretrained model, one task, one algorithm."""

    model: str
    num_layers: int
    task: str
    algorithm: str = "grpo"
    steps: int = 32
    prompts_per_step: int = 8
    rates: tuple[float, ...] = (1e-4, 3e-5, 1e-5)
    """Learning rates of every arm. Most layers learn best at the first, all parameters together at the second."""
    held_out: bool = False
    """No decision was made on it: the prediction was fixed before it was measured."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.task.rpartition(':')[2]}.{self.algorithm}"

    def options(self, model: str | None, seed: int = 0) -> dict[str, Any]:
        """Returns the settings of a run, as keywords of `autolayer.pick`; `model` is a folder that holds the model."""
        return {
            "model": model or self.model,
            "task": self.task,
            "algorithm": self.algorithm,
            "steps": self.steps,
            "prompts_per_step": self.prompts_per_step,
            "num_eval": 384,
            "seed": seed,
        }

    def arms(self) -> list[tuple[Layers, float]]:
        """Returns layers and learning rate of every arm, in the order in which they are measured.

        What decides most comes first: all parameters, the ends, the middle and both sides of where layers stop
        learning, then every third layer, then the others, and at last the other rates.
        """
        last = self.num_layers - 1
        first = dict.fromkeys([0, round(last / 2), last, round(last * 0.7), round(last * 0.85)])
        others = [layer for layer in dict.fromkeys([*range(0, last, 3), *range(self.num_layers)]) if layer not in first]
        usual, lower, *more = self.rates
        full: Layers = "full"
        alone: list[Layers] = [(layer,) for layer in (*first, *others)]
        order = [(full, lower), *((layers, usual) for layers in alone[: len(first)])]
        order += [(full, rate) for rate in (*more, usual)] + [(layers, usual) for layers in alone[len(first) :]]
        return order + [(layers, rate) for rate in (lower, *more) for layers in alone]


ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment(model="smollm2", num_layers=30, task="math:sums"),
        Environment(model="smollm2", num_layers=30, task="math:larger"),
        Environment(model="smollm2", num_layers=30, task="words:kinds"),
        Environment(model="smollm2", num_layers=30, task="math:format"),
        Environment(model="gemma-3-270m", num_layers=18, task="math:sums", rates=(3e-5, 1e-5, 3e-6)),
        Environment(model="smollm2", num_layers=30, task="words:copy", algorithm="dr_grpo", held_out=True),
    )
}


def load(environment: Environment) -> dict[str, Any]:
    """Returns what is known of an environment."""
    path = RESULTS / f"{environment.name}.json"
    return json.loads(path.read_text()) if path.is_file() else {"arms": {}}


def keep(environment: Environment, values: dict[str, Any]) -> None:
    """Adds to an environment's file in results/."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{environment.name}.json"
    path.with_suffix(".new").write_text(json.dumps(load(environment) | values, indent=1) + "\n")
    path.with_suffix(".new").replace(path)


def rewards(digits: str) -> np.ndarray:
    """Returns the rewards of items from one digit each, 0 for 0 to 9 for 1."""
    return np.array([int(digit) for digit in digits]) / 9
