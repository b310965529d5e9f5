"""`autolayer doctor`: checks this machine and its packages before a run, and says what to change."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autolayer.core.errors import AutolayerError
from autolayer.core.formatting import format_bytes, format_seconds
from autolayer.reporting.results import PACKAGES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autolayer.core.config import Config

TESTED = {"torch": "2.13", "transformers": "5.23", "trl": "1.16", "peft": "0.21", "optuna": "5.0", "vllm": "0.30"}
"""Versions that the tests use (constraints.txt). No other minor version of TRL works."""
NEEDED_DISK = 5 << 30
"""Free bytes below which a run of a large model may not finish: it keeps checkpoints of the raced layers."""


@dataclass(frozen=True)
class Check:
    """The result of one check. A bad one means that a run cannot work."""

    name: str
    state: Literal["good", "note", "bad"]
    finding: str
    """The finding, and the remedy if it is not good."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of all checks."""

    checks: tuple[Check, ...]

    @property
    def is_well(self) -> bool:
        """True if no check is bad."""
        return all(check.state != "bad" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for --json."""
        return {"is_well": self.is_well, **asdict(self)}

    def render(self) -> RenderableType:
        """Returns a table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for check in self.checks:
            words, color = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("bad", "red")}[check.state]
            table.add_row(check.name, Text(words, style=color), check.finding)
        return table


def diagnose(config: Config | None, folder: Path = Path(".")) -> Diagnosis:
    """Checks Python, packages, devices, the disk of the folder, the sandbox, and the run of a configuration."""
    return Diagnosis((*_packages(), *_devices(), _disk(folder), _sandbox(), *(_run(config) if config else ())))


def _packages() -> Iterator[Check]:
    yield Check("Python", "good", platform.python_version())
    for name in (*PACKAGES, "vllm"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                yield Check(name, "bad", "not installed: reinstall autolayer")
            continue
        tested = TESTED.get(name, found)
        if f"{found}.".startswith(f"{tested}."):
            yield Check(name, "good", found)
        else:
            finding = f"{found}; tested with {tested}: `pip install -c constraints.txt` installs it"
            yield Check(name, "bad" if name == "trl" else "note", finding)


def _devices() -> Iterator[Check]:
    import psutil
    import torch

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Check(f"GPU {index}", "good", f"{about.name}, {format_bytes(about.total_memory)}")
    if not torch.cuda.is_available():
        yield Check("GPU", "note", "none that torch can use: models of more than a few million parameters are slow")
    elif importlib.util.find_spec("vllm") is None:
        slow = 'transformers, which is slow on a GPU: `pip install -e ".[vllm]"` makes vllm the default'
        yield Check("rollouts", "note", slow)
    memory = psutil.virtual_memory()
    sizes = f"{format_bytes(memory.total)} of memory, {format_bytes(memory.available)} free"
    yield Check("CPU", "good", f"{os.cpu_count()} cores, {sizes}")


def _disk(folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    finding = f"{format_bytes(free)} free at {existing}"
    if free < NEEDED_DISK:
        return Check("disk", "note", f"{finding}: little for a large model; give --out on another disk")
    return Check("disk", "good", finding)


def _sandbox() -> Check:
    from autolayer.tasks.code.sandbox.open_sandbox import missing_sandbox

    if problem := missing_sandbox():
        return Check("sandbox", "note", f"none ({problem}): --task code needs one")
    return Check("sandbox", "good", "bubblewrap, for tasks that run programs")


def _run(config: Config) -> Iterator[Check]:
    from autolayer.pipeline.dry_run import plan_run

    try:
        plan = plan_run(config)
    except AutolayerError as error:
        yield Check("run", "bad", str(error))
        return
    yield Check("model", "good", f"{config.model}: {plan.num_layers} layers")
    if plan.seconds is not None:
        whole, train = (format_seconds(seconds) for seconds in (sum(plan.seconds.values()), plan.seconds["train"]))
        finding = f"about {whole} in one process, of which training {train}, uncertain by a factor of two or three"
        yield Check("time", "good", finding)
    yield Check("memory", "good" if plan.memory.fits else "bad", plan.memory.sentence)
    if not plan.races:
        yield Check("search", "note", "the budget pays for no short runs, so the probes decide alone")
