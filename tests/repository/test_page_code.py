"""Every Python block of README.md and docs/ compiles, and runs as it stands on the packaged model."""

import importlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import trl
from datasets import Dataset
from pick_helpers import short_pick
from trl.trainer.grpo_config import GRPOConfig

import autolayer
from autolayer.models.loading import load_model
from autolayer.probes import PROBES
from autolayer.tasks.generated import exact_reward
from autolayer.tasks.math.arith import arith_problems

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(#+ [^\n]+)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"hand-over.md"}
"""Pages with a test of their own."""


def blocks() -> Iterator[tuple[str, str]]:
    """Yields each block with the name of its page and the heading above it."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        heading = ""
        for title, code in BLOCK.findall(page.read_text()):
            heading = title.lstrip("# ") or heading
            if code:
                yield f"{page.name}: {heading}", code


BLOCKS = list(blocks())
NAMES = [name for name, _ in BLOCKS]
RUN = [pair for pair in BLOCKS if pair[0].partition(":")[0] not in ELSEWHERE]


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=NAMES)
def test_a_block_compiles_and_its_names_of_the_library_exist(name: str, code: str) -> None:
    compile(code, name, "exec")
    assert set(re.findall(r"\bautolayer\.(\w+)\(", code)) <= set(autolayer.__all__)
    for module, imported in re.findall(r"^from (autolayer[\w.]*) import (.+)$", code, re.MULTILINE):
        assert all(hasattr(importlib.import_module(module), each) for each in imported.split(", "))


QUICK: dict[str, Any] = {"steps": 4, "prompts_per_step": 4, "num_eval": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the pages call `runs/<run>`."""
    folder = tmp_path_factory.mktemp("pages")
    short_pick(folder / "runs" / "<run>", **QUICK)
    return folder


def loss_of(model: Any, batch: Any) -> Any:
    return model(**batch, labels=batch["input_ids"]).loss


class OwnTrainer:
    """Takes one step on the parameters that require gradients."""

    def __init__(self, model: Any, batch: Any) -> None:
        self.model, self.batch = model, batch

    def train(self) -> None:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        loss_of(self.model, self.batch).backward()
        torch.optim.AdamW(trained).step()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), RUN, ids=[name for name, _ in RUN])
def test_a_block_runs(name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick: Any = autolayer.pick
    monkeypatch.chdir(folder)
    # Few steps pay for no gradients, which probes need.
    monkeypatch.setattr(
        autolayer, "pick",
        lambda **options: pick(**options if options.get("until") == "probe" else {**options, **QUICK, "budget": 1.0}),
    )  # fmt: skip
    short = {"max_steps": 2, "max_completion_length": 8, "use_cpu": True, "bf16": False, "report_to": []}
    monkeypatch.setattr(trl, "GRPOConfig", partial(GRPOConfig, **short))
    model, tokenizer = load_model("tiny", "cpu").model, load_model("tiny", "cpu").tokenizer
    batch = dict(tokenizer(["37~25=12"], return_tensors="pt"))
    given = {
        "dataset": Dataset.from_list(arith_problems("train", 64)),
        "found": autolayer.PickResult.read("runs/<run>"),
        "loader": [batch, batch],
        "trainer": OwnTrainer(model, batch),
        "reward": exact_reward,
    }
    code = code.replace("train_only(model, 16)", "train_only(model, 6)")  # the packaged model has 8 layers
    names = {"autolayer": autolayer, "loss_of": loss_of, "model": model, "tokenizer": tokenizer, **given}
    with patch.dict(PROBES):  # a page may add one
        exec(compile(code, name, "exec"), names)


@pytest.mark.slow
def test_the_own_task_of_the_page_is_probed(tmp_path: Path) -> None:
    code = next(code for name, code in BLOCKS if name.startswith("extending.md: Your own task"))
    (tmp_path / "distance.py").write_text(code)
    task = f"{tmp_path / 'distance.py'}:DISTANCE"
    result = short_pick(tmp_path / "run", **QUICK, task=task, until="probe")
    assert result.best_layers and result.probes
