"""RealBench: which pretrained model is trained on what, by which algorithm."""

from dataclasses import dataclass
from pathlib import Path

from autolayer.core.layer_set import Layers

HERE = Path(__file__).parent
RATES = (3e-5, 1e-4)
"""Learning rates of every arm, all parameters included."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One pretrained model, one task, one algorithm."""

    model: str
    num_layers: int
    task: str
    algorithm: str = "grpo"
    steps: int = 32
    prompts_per_step: int = 8
    sealed: bool = False
    """Measured, but read once, at the end: no decision was made on it."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.task.rpartition(':')[2]}.{self.algorithm}"

    def options(self, model: str | None, seed: int = 0) -> dict:
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
        learning, then every third layer, then the others, each at the rate that most layers learn best at. The other
        rate comes last.
        """
        last = self.num_layers - 1
        first = [0, round(last / 2), last, round(last * 0.7), round(last * 0.85)]
        layers = dict.fromkeys([*first, *range(0, last, 3), *range(self.num_layers)])
        full: list[tuple[Layers, float]] = [("full", rate) for rate in RATES]
        return full + [((layer,), rate) for rate in reversed(RATES) for layer in layers]


ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment(model="smollm2", num_layers=30, task="math:sums"),
        Environment(model="smollm2", num_layers=30, task="words:sequence"),
        Environment(model="smollm2", num_layers=30, task="words:opposites"),
        Environment(model="gemma-3-270m", num_layers=18, task="math:sums"),
    )
}
