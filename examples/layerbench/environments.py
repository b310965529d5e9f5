"""LayerBench: which base is trained on what, by which algorithm, for how long."""

from dataclasses import dataclass
from pathlib import Path

from bases import BASES

from autolayer.models.names import EMBEDDED

HERE = Path(__file__).parent
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Every arm's learning rates. Larger ones gain more on one seed and collapse on the next."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One base, one task, one algorithm."""

    base: str
    task: str
    """A name of tasks.py, or one that comes with autolayer, such as `math:arith`."""
    algorithm: str = "grpo"
    steps: int = 48
    prompts_per_step: int = 32
    num_eval: int = 1024
    layers: str | None = None
    """Layers that are measured, and what the tool chooses among; None for all of them."""
    sealed: bool = False
    """Built and measured, but used once, at the end: no decision was made on it."""

    @property
    def name(self) -> str:
        return f"{self.base}.{self.task.rpartition(':')[2]}.{self.algorithm}"

    def model(self, bases: Path) -> str:
        """Model name that the tool gets."""
        return self.base if self.base in EMBEDDED else str(bases / self.base)

    def options(self, bases: Path, seed: int = 0) -> dict:
        """The settings of a run, as keywords of `autolayer.pick` and `autolayer.measure`."""
        return {
            "model": self.model(bases),
            "task": self.task if ":" in self.task else f"{HERE / 'tasks.py'}:{self.task}",
            "algorithm": self.algorithm,
            "layers": self.layers,
            "steps": self.steps,
            "prompts_per_step": self.prompts_per_step,
            "num_eval": self.num_eval,
            "seed": seed,
        }


ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment(base="walk-qwen2", task="walk", steps=32),
        Environment(base="walk-llama", task="walk_each"),
        Environment(base="far-qwen3", task="walk_far", algorithm="dr_grpo"),
        Environment(base="gap-qwen3", task="gap"),
        Environment(base="symbols-llama", task="noisy", steps=16),
        Environment(base="symbols-llama", task="reading"),
        Environment(base="symbols-llama", task="reading", algorithm="dr_grpo"),
        Environment(base="lists-qwen3", task="order"),
        Environment(base="symbols-qwen2", task="reading"),
        Environment(base="deep-llama", task="walk_many", layers="0-4,7,10,13,16,19"),
        Environment(base="mixed-qwen3", task="reading"),
        Environment(base="mixed-llama", task="order", algorithm="dr_grpo"),
        Environment(base="exit-llama", task="reading"),
        Environment(base="exit-qwen2", task="reading", algorithm="dr_grpo", layers="0-5,7,9,11,13"),
        Environment(base="exit-qwen3", task="reading", layers="0-6,8,11"),
        Environment(base="exit-deep", task="reading", layers="0-5,7,9,17"),
        Environment(base="trip-llama", task="trip", algorithm="gigpo", steps=32, prompts_per_step=16),
        Environment(base="errand-qwen3", task="errand", algorithm="gigpo", steps=32, prompts_per_step=16),
        Environment(base="both-qwen2", task="errand", algorithm="gigpo", steps=32, prompts_per_step=16),
        Environment(base="expr-llama", task="code:expr", steps=24, prompts_per_step=16, num_eval=512),
        Environment(base="tiny", task="math:arith", steps=32),
        Environment(base="tiny", task="code:expr", algorithm="dr_grpo", steps=24, prompts_per_step=16, num_eval=512),
        Environment(base="tiny-qwen2", task="math:arith", algorithm="dr_grpo", steps=32),
        Environment(base="shut-trip", task="trip", algorithm="gigpo", steps=32, prompts_per_step=16, sealed=True),
        Environment(
            base="shut-expr",
            task="code:expr",
            algorithm="dr_grpo",
            steps=24,
            prompts_per_step=16,
            num_eval=512,
            sealed=True,
        ),
        Environment(base="shut-llama", task="reading", sealed=True),
        Environment(base="shut-qwen2", task="walk_each", algorithm="dr_grpo", sealed=True),
    )
}
assert all(environment.base in BASES or environment.base in EMBEDDED for environment in ENVIRONMENTS.values())
