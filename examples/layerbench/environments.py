"""LayerBench: which base is trained on what, by which algorithm, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bases import BASES

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One base, one task, one algorithm."""

    base: str
    task: str
    """A name of `languages.LANGUAGES`."""
    algorithm: str = "grpo"
    steps: int = 60
    sealed: bool = False
    """Built and measured, but used once, at the end: no decision was made on it."""

    @property
    def name(self) -> str:
        return f"{self.base}.{self.task}.{self.algorithm}"

    def options(self, bases: Path, seed: int = 0) -> dict:
        """The settings of a run, as keywords of `autolayer.pick` and `autolayer.measure`."""
        return {
            "model": str(bases / self.base),
            "task": f"{HERE / 'tasks.py'}:{self.task}",
            "algorithm": self.algorithm,
            "steps": self.steps,
            "prompts_per_step": 32,
            "num_eval": 1024,
            "seed": seed,
        }


ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment(base="walk-qwen2", task="walk", steps=30),
        Environment(base="walk-llama", task="walk_each", steps=25),
        Environment(base="far-qwen3", task="walk_far", algorithm="dr_grpo", steps=50),
        Environment(base="capital-qwen2", task="walk_capital", steps=50),
        Environment(base="gap-qwen3", task="gap", steps=60),
        Environment(base="symbols-llama", task="noisy", steps=14),
        Environment(base="symbols-llama", task="reading", steps=40),
        Environment(base="symbols-llama", task="reading", algorithm="dr_grpo", steps=40),
        Environment(base="lists-qwen3", task="order", steps=40),
        Environment(base="deep-llama", task="walk_many", steps=30),
    )
}
assert all(environment.base in BASES for environment in ENVIRONMENTS.values())
