"""The models that ship: what they know before RL, and the whole search on the least of their tasks."""

from pathlib import Path

import pytest

import autolayer
from autolayer.core.config import Config
from autolayer.models.loading import load_model
from autolayer.models.names import EMBEDDED, model_path
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.evaluation import evaluation_requests
from autolayer.rollouts.sampler import sample
from autolayer.tasks import load_task

SOLVED = {
    ("tiny", "math:arith"): 0.419, ("tiny", "code:expr"): 0.463, ("tiny", "agent:house"): 0.219,
    ("tiny-qwen2", "math:arith"): 0.310, ("tiny-qwen2", "code:expr"): 0.453, ("tiny-qwen2", "agent:house"): 0.223,
}  # fmt: skip
"""The bases of examples/every_task.py, in examples/RESULTS.md."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task_name"), SOLVED)
def test_a_packaged_model_can_do_its_tasks_a_little(name: str, task_name: str) -> None:
    """The base solves 20% to 60%, so that RL has something to find, and something to win."""
    loaded = load_model(name)
    task = load_task(Config(model=name, task=task_name), chat=False)
    engine = TransformersEngine(
        loaded.model, loaded.tokenizer, max_new_tokens=task.max_new_tokens, temperature=1.0,
        max_context=task.max_context,
    )  # fmt: skip
    asked = evaluation_requests(task, "eval", 256, 0)
    rewards = sample(engine, task, asked.rows, asked.seeds, 1).rewards
    mean = sum(rewards) / len(rewards)
    assert mean == pytest.approx(SOLVED[name, task_name], abs=0.08), "about three standard errors"


def test_all_models_together_are_small() -> None:
    files = [path for name in EMBEDDED for path in Path(model_path(name)).rglob("*") if path.is_file()]
    assert {name for name in EMBEDDED} == {"tiny", "tiny-qwen2"}
    assert sum(path.stat().st_size for path in files) < 8_000_000


@pytest.mark.slow
def test_probes_and_search_work_over_several_turns(tmp_path: Path) -> None:
    result = autolayer.pick(
        model="tiny-qwen2", task="agent:house", algorithm="gigpo", layers="2,5", steps=6, prompts_per_step=4,
        group_size=4, budget=4.0, num_eval=64, out=str(tmp_path / "run"), until="search",
    )  # fmt: skip
    assert result.algorithm == "gigpo" and result.ranking is not None and result.probes is not None
    assert {row.layer for row in result.ranking} == {2, 5}
    assert all(result.probes[name][2] is not None for name in ("trusted_gain", "reach"))
    assert any(row.rungs for row in result.ranking)
    assert result.cost["probe"].generated_tokens >= 0 and result.cost["search"].layer_tokens > 0
