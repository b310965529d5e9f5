"""Shared fixtures. No test may use the network or a GPU."""

from __future__ import annotations

import os

# Read when the libraries are imported, so set before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from autolayer.tasks.code.sandbox.pool import Sandbox


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests first whose shared run takes minutes.

    xdist divides what stands further behind between its processes, and each of them would make that run.
    """
    items.sort(key=lambda item: item.path.name != "test_mission.py")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 4 layers × 32 in float32, shared by the session: read only."""
    from tiny_models import build

    return build("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture
def tiny_model():
    """A fresh random Qwen3 of 4 layers × 32 in float32."""
    from tiny_models import build_model

    return build_model("qwen3")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """The sandbox that this machine should have."""
    from autolayer.tasks.code.sandbox.bubblewrap import bubblewrap
    from autolayer.tasks.code.sandbox.open_sandbox import missing_sandbox
    from autolayer.tasks.code.sandbox.pool import Sandbox

    problem, command = missing_sandbox(), bubblewrap()
    if command is None or problem is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no attack was tried: {problem}")
    opened = Sandbox(command, 2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def no_box() -> Iterator[Sandbox]:
    """No sandbox at all, as --allow-unsandboxed has it."""
    from autolayer.tasks.code.sandbox import bubblewrap
    from autolayer.tasks.code.sandbox.pool import Sandbox

    opened = Sandbox(bubblewrap.bare(), 1)
    yield opened
    opened.close()


@pytest.fixture
def _sandbox() -> None:
    """Skips a test if the sandbox that the code tasks open themselves does not open."""
    from autolayer.core.errors import SandboxError
    from autolayer.tasks.code.sandbox.open_sandbox import open_sandbox

    try:
        open_sandbox()
    except SandboxError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
