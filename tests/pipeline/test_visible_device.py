"""A GPU other than the first is chosen without a trace in the caller's environment."""

import os

import pytest
import torch

from autolayer.core.errors import ConfigError
from autolayer.pipeline import visible_device
from autolayer.pipeline.visible_device import only_visible


@pytest.fixture(autouse=True)
def _gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible_device, "find_device", torch.device)


@pytest.mark.parametrize(("before", "inside"), [(None, "1"), ("", "1"), ("4,6", "6")])
def test_only_one_gpu_is_visible_and_the_environment_is_restored(
    before: str | None, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with pytest.raises(KeyError), only_visible("cuda:1") as device:
        assert (device, os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda", inside)
        raise KeyError
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0"])
def test_the_first_gpu_and_the_cpu_hide_nothing(device: str) -> None:
    before = dict(os.environ)
    with only_visible(device) as name:
        assert name == device and dict(os.environ) == before


def test_a_process_that_uses_cuda_already_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1"), only_visible("cuda:1"):
        pytest.fail("it must be refused")
