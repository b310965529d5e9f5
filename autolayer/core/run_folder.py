"""The run folder: what every stage leaves for the next, and how a run is resumed or refused.

Files are written to a temporary name and moved into place, so a crash leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from autolayer.core.errors import RunFolderError

if TYPE_CHECKING:
    from autolayer.core.config import Config

CONFIG, CALIBRATION, ROLLOUTS, PROBE, SEARCH, RESULT = (
    f"{stage}.json" for stage in ("config", "calibration", "rollouts", "probe", "search", "result")
)
PATCH, REPORT = "layer.safetensors", "report.html"
ADAPTER = "adapter"
"""Folder of what --adapter trained, in PEFT's format."""


class RunFolder:
    """One run on disk. Opening it creates nothing; the first write does."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns a stage's JSON, or None if that stage has not finished.

        Raises:
            RunFolderError: The file is there but is not JSON: somebody or something damaged it.
        """
        file = self.path / name
        if not file.exists():
            return None
        try:
            value = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.damaged(name, error) from None
        if not isinstance(value, dict):
            raise self.damaged(name, "no JSON object")
        return value

    def has(self, *names: str) -> bool:
        """Returns whether one of these files or folders is there."""
        return any((self.path / name).exists() for name in names)

    def damaged(self, name: str, reason: object) -> RunFolderError:
        """The error for a file that cannot be used, with the way that loses least."""
        cure = "delete that file to redo its stage"
        if name == CONFIG:  # says whose folder it is, so nothing in it can be trusted
            cure = "restore that file, delete the folder to start again"
        return RunFolderError(f"{self.path / name} is damaged ({reason}): {cure}, or choose another --out.")

    def write(self, name: str, value: dict[str, Any], *, indent: int | None = 1) -> None:
        """Writes a stage's JSON whole or not at all. NaN and infinities are refused: they are no results."""
        self._beside(name, value, indent).replace(self.path / name)

    def _beside(self, name: str, value: dict[str, Any], indent: int | None) -> Path:
        """Writes to a temporary name, for what moves it into place."""
        text = json.dumps(value, indent=indent, allow_nan=False)
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.{uuid.uuid4().hex}"
        temporary.write_text(text + "\n")
        return temporary

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes of this machine out, so that two do not write over each other.

        Raises:
            RunFolderError: Another process is at work here.
        """
        # Beside the folder would be litter, and inside it a file that is no result.
        name = hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:16]
        lock = filelock.FileLock(Path(tempfile.gettempdir()) / f"autolayer-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"another process is at work in {self.path}: wait until it ends, or choose another --out."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def keep_only(self, name: str, value: dict[str, Any]) -> None:
        """Writes one file and gives up the claim: a run that found nothing leaves just the reason."""
        self.write(name, value)
        (self.path / CONFIG).unlink(missing_ok=True)

    def give_up(self) -> None:
        """Gives up the claim if no stage has finished, so that a mended reward may use the same folder."""
        if list(self.path.iterdir()) == [self.path / CONFIG]:
            (self.path / CONFIG).unlink()
            self.path.rmdir()

    def claim(self, resolved: dict[str, Any], signature: str, *, accept_changes: bool = False) -> dict[str, Any]:
        """Makes the folder this configuration's, or checks that it already is.

        Args:
            resolved: All that decides what the run does, with hashes of the user's files.
            signature: Made from that.
            accept_changes: Go on with a run whose files have changed. It keeps its signature.

        Returns:
            What config.json holds; under 'changed' the kinds of files that were changed on the way.

        Raises:
            RunFolderError: The folder belongs to another configuration, or holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--out {self.path} is a file: give a folder.")
        before = self.read(CONFIG)
        claimed = {"signature": signature, **resolved}
        if before is None:
            calibration = self.path / CALIBRATION
            inside = self._inside()
            if inside and (before := self.read(CONFIG)):
                return self.claim(resolved, signature, accept_changes=accept_changes)  # another worker was faster
            if inside == [calibration]:
                calibration.unlink()  # what `keep_only` left: there was nothing to lose
            elif inside:
                raise RunFolderError(
                    f"--out {self.path} is not empty and is no run folder (it has no {CONFIG}): give a new folder."
                )
            if not self._create(CONFIG, claimed):
                return self.claim(resolved, signature, accept_changes=accept_changes)
            return claimed
        if "signature" not in before:
            raise self.damaged(CONFIG, "it has no signature")
        differing = _differences(before, resolved)
        if not differing and (before["signature"] == signature or "changed" in before):
            return before
        files = [each.partition("_hash")[0] for each in differing]
        if not files or any("_hash: " not in each or each.startswith("base_hash") for each in differing):
            raise RunFolderError(
                f"--out {self.path} belongs to another configuration ({'; '.join(differing) or 'signature'}): "
                "choose another --out, or repeat the command that made it to resume it."
            )
        if not accept_changes:
            raise RunFolderError(
                f"the {' and '.join(files)} file has changed since the run in {self.path} was made, and with it what "
                "that run would find: give a new --out to start again, --accept-changes to go on all the same (the "
                "result will say so), or the old file back."
            )
        claimed = {**before, **resolved, "changed": sorted({*before.get("changed", ()), *files})}
        self.write(CONFIG, claimed)
        return claimed

    def _inside(self) -> list[Path]:
        """What the folder holds, without what another process is writing at this moment."""
        if not self.path.is_dir():
            return []
        return [path for path in self.path.iterdir() if not re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name)]

    def _create(self, name: str, value: dict[str, Any]) -> bool:
        """Writes a file that is not there; False where another process was faster."""
        temporary = self._beside(name, value, 1)
        try:
            os.link(temporary, self.path / name)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            temporary.replace(self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        return True


def open_run(config: Config, verb: str = "pick") -> RunFolder:
    """The folder of a configuration: `--out`, or a name made from model, task and signature."""
    if config.out is not None:
        return RunFolder(config.out)
    task = Path(config.data).stem if config.data and config.reward else config.task
    words = [Path(config.model).name if Path(config.model).exists() else config.model, task, config.signature]
    words = words if verb == "pick" else [verb, *words]
    return RunFolder(Path("runs") / "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in w) for w in words))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """'steps: 300 there, 200 here' for every setting that differs."""
    return [
        f"{name}: {before.get(name)} there, {now.get(name)} here"
        for name in now
        if name != "signature" and before.get(name) != json.loads(json.dumps(now[name]))
    ]
