"""The run folder: holds the files of every stage, so that a run can be resumed, and refuses another configuration.

Files are written to a temporary name and moved into place, so that a crash leaves either the old or the new file.
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
"""Folder of the adapters that --adapter trained, in PEFT's format."""


class RunFolder:
    """The folder of one run. The first write creates it on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns a stage's JSON, or None if that stage has not finished.

        Raises:
            RunFolderError: The file exists but holds no JSON object.
        """
        file = self.path / name
        if not file.exists():
            return None
        try:
            value = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.damaged(name, error) from None
        if not isinstance(value, dict):
            raise self.damaged(name, "it holds no JSON object")
        return value

    def has(self, *names: str) -> bool:
        """Returns True if at least one of these files or folders exists."""
        return any((self.path / name).exists() for name in names)

    def damaged(self, name: str, reason: object) -> RunFolderError:
        """Builds the error for an unusable file, with the remedy that loses the least work."""
        cure = "delete that file to redo its stage"
        if name == CONFIG:  # it alone says which configuration the other files belong to
            cure = "restore that file, delete the folder to start again"
        return RunFolderError(f"{self.path / name} is damaged ({reason}): {cure}, or choose another --out.")

    def write(self, name: str, value: dict[str, Any], *, indent: int | None = 1) -> None:
        """Writes a stage's JSON atomically.

        Args:
            name: File name.
            value: Plain values.
            indent: Indentation of the JSON; None for a single line.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        self._write_temporary(name, value, indent).replace(self.path / name)

    def _write_temporary(self, name: str, value: dict[str, Any], indent: int | None) -> Path:
        """Writes the JSON to a temporary file and returns its path; the caller moves it into place."""
        text = json.dumps(value, indent=indent, allow_nan=False)
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.{uuid.uuid4().hex}"
        temporary.write_text(text + "\n")
        return temporary

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the folder against other processes of this machine while the block runs.

        Raises:
            RunFolderError: Another process holds the lock.
        """
        # The lock file is in the temporary folder, so that the run folder holds results only.
        name = hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:16]
        lock = filelock.FileLock(Path(tempfile.gettempdir()) / f"autolayer-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"another process is working in {self.path}: wait until it ends, or choose another --out."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def keep_only(self, name: str, value: dict[str, Any]) -> None:
        """Writes one file and deletes config.json, so that a run without a result leaves only the reason."""
        self.write(name, value)
        (self.path / CONFIG).unlink(missing_ok=True)

    def give_up(self) -> None:
        """Deletes the folder if no stage has finished, so that a corrected reward can use the same --out."""
        if list(self.path.iterdir()) == [self.path / CONFIG]:
            (self.path / CONFIG).unlink()
            self.path.rmdir()

    def claim(self, resolved: dict[str, Any], signature: str, *, accept_changes: bool = False) -> dict[str, Any]:
        """Writes config.json into a new folder, or checks that an existing one belongs to this configuration.

        Args:
            resolved: All settings that decide what the run does, with hashes of the user's files.
            signature: Hash of `resolved`.
            accept_changes: Resume a run although the user's files have changed. The run keeps its signature.

        Returns:
            The content of config.json; 'changed' lists the kinds of files that have changed during the run.

        Raises:
            RunFolderError: The folder belongs to another configuration, or is not a run folder.
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
                calibration.unlink()  # `keep_only` left it after a run without a signal
            elif inside:
                raise RunFolderError(
                    f"--out {self.path} is not empty and is not a run folder (it has no {CONFIG}): give a new folder."
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
                f"the {' and '.join(files)} file has changed since the run in {self.path} was made, which changes "
                "its results: give a new --out to start again, restore the old file, or give --accept-changes to "
                "continue anyway (the result records the change)."
            )
        claimed = {**before, **resolved, "changed": sorted({*before.get("changed", ()), *files})}
        self.write(CONFIG, claimed)
        return claimed

    def _inside(self) -> list[Path]:
        """Returns the paths in the folder, without the temporary files of other processes."""
        if not self.path.is_dir():
            return []
        return [path for path in self.path.iterdir() if not re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name)]

    def _create(self, name: str, value: dict[str, Any]) -> bool:
        """Writes a file if it does not exist; returns False if another process has created it first."""
        temporary = self._write_temporary(name, value, 1)
        try:
            os.link(temporary, self.path / name)
        except FileExistsError:
            return False
        except OSError:  # the file system has no hard links
            temporary.replace(self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        return True


def open_run(config: Config, verb: str = "pick") -> RunFolder:
    """Returns the run folder of a configuration: `--out`, or a name made from model, task and signature.

    Args:
        config: Settings of the run.
        verb: Name of the command; all but "pick" are put before the name.
    """
    if config.out is not None:
        return RunFolder(config.out)
    task = Path(config.data).stem if config.data and config.reward else config.task
    words = [Path(config.model).name if Path(config.model).exists() else config.model, task, config.signature]
    words = words if verb == "pick" else [verb, *words]
    return RunFolder(Path("runs") / "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in w) for w in words))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns a text such as 'steps: 300 there, 200 here' for every setting that differs."""
    return [
        f"{name}: {before.get(name)} there, {now.get(name)} here"
        for name in now
        if name != "signature" and before.get(name) != json.loads(json.dumps(now[name]))
    ]
