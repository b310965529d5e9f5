"""Shared fixtures. No test may use the network or a GPU."""

from __future__ import annotations

import os

# Read when the libraries are imported, so set before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


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
