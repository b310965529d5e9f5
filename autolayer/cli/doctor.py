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
from autolayer.pipeline.result_builder import PACKAGES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autolayer.core.config import Config

TESTED = {"torch": "2.13", "transformers": "5.23", "trl": "1.16", "peft": "0.21", "optuna": "5.0", "vllm": "0.30"}
"""Versions that the tests use (constraints.txt). No other minor version of TRL works."""
NEEDED_DISK = 5 << 30
"""Free bytes below which a run of a large model may not finish: it keeps checkpoints of the raced layers."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    state: Literal["good", "note", "bad"]
    """bad means that a run cannot work."""
    says: str
    """The finding, and the remedy if it is not good."""


@dataclass(frozen=True, kw_only=True)
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

        table = Table(box=None, show_header=False, pad_edge=False)
        for check in self.checks:
            mark = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}[check.state]
            table.add_row(check.name, mark, check.says)
        return table


def diagnose(config: Config | None, folder: Path = Path(".")) -> Diagnosis:
    """Checks Python, packages, devices, disk and sandbox, and with a configuration the model and the plan.

    Args:
        config: Settings of the planned run, or None to check the machine only.
        folder: Folder that the run writes to; the free space of its disk is checked.
    """
    return Diagnosis(checks=(*_packages(), *_device(config), *_engine(), _disk(folder), _sandbox(), *_plan(config)))


def _packages() -> Iterator[Check]:
    yield Check(name="Python", state="good", says=platform.python_version())
    for name in (*PACKAGES, "vllm"):
        wanted = TESTED.get(name)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                yield Check(name=name, state="bad", says="not installed: reinstall autolayer")
            continue
        fits = wanted is None or found.startswith(f"{wanted}.") or found == wanted
        says = found if fits else f"{found}; tested with {wanted}: `pip install -c constraints.txt` installs it"
        state = "good" if fits else "bad" if name == "trl" else "note"
        yield Check(name=name, state=state, says=says)


def _device(config: Config | None) -> Iterator[Check]:
    import psutil
    import torch

    if config is not None:
        from autolayer.models.device import find_device

        try:
            find_device(config.device)
        except AutolayerError as error:
            yield Check(name="device", state="bad", says=str(error))
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Check(name=f"GPU {index}", state="good", says=f"{about.name}, {format_bytes(about.total_memory)}")
    if not torch.cuda.is_available():
        yield Check(
            name="GPU",
            state="note",
            says="none that torch can use: models of more than a few million parameters are slow",
        )
    memory = psutil.virtual_memory()
    yield Check(
        name="CPU",
        state="good",
        says=f"{os.cpu_count()} cores, {format_bytes(memory.total)} of memory, {format_bytes(memory.available)} free",
    )


def _engine() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        return
    if importlib.util.find_spec("vllm") is None:
        says = 'transformers, which is slow on a GPU: `pip install "autolayer[vllm]"` makes vllm the default'
        yield Check(name="rollouts", state="note", says=says)
    else:
        yield Check(name="rollouts", state="good", says="vllm")


def _disk(folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    says = f"{format_bytes(free)} free at {existing}"
    if free < NEEDED_DISK:
        return Check(name="disk", state="note", says=f"{says}: little for a large model; give --out on another disk")
    return Check(name="disk", state="good", says=says)


def _sandbox() -> Check:
    from autolayer.tasks.code.sandbox.opening import missing_sandbox

    if problem := missing_sandbox():
        return Check(name="sandbox", state="note", says=f"none ({problem}): --task code needs one")
    return Check(name="sandbox", state="good", says="bubblewrap, for tasks that run programs")


def _plan(config: Config | None) -> Iterator[Check]:
    """Plans the run, and checks its model, time, memory and search."""
    if config is None:
        return
    from autolayer.pipeline.dry_run import plan_run

    try:
        plan = plan_run(config)
    except AutolayerError as error:
        yield Check(name="run", state="bad", says=str(error))
        return
    yield Check(name="model", state="good", says=f"{config.model}: {plan.num_layers} layers")
    if plan.seconds is not None:
        whole, train = sum(plan.seconds.values()), plan.seconds["train"]
        parts = f"about {format_seconds(whole)} in one process, of which training {format_seconds(train)}"
        says = f"{parts}, uncertain by a factor of two or three"
        yield Check(name="time", state="good", says=says)
    yield Check(name="memory", state="good" if plan.memory.fits else "bad", says=plan.memory.sentence)
    if not plan.races:
        yield Check(name="search", state="note", says="the budget pays for no short runs, so the probes decide alone")
