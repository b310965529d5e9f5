"""The run folder: holds the files of every stage, so that a run can be resumed, and refuses another configuration.

Every file is written completely or not at all, and sealed, so that a damaged one, and one of another run, is refused by
its name.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from autolayer.core.errors import RunFolderError
from autolayer.core.whole_files import (
    NO_FILE,
    TEMPORARY,
    add_digest_beside,
    check_digest_beside,
    seal,
    sweep,
    unseal,
    write_whole,
)

if TYPE_CHECKING:
    from autolayer.core.config import Config

CONFIG, CALIBRATION, ROLLOUTS, PROBE, SEARCH, RESULT = (
    f"{stage}.json" for stage in ("config", "calibration", "rollouts", "probe", "search", "result")
)
PATCH, REPORT, STUDY, ARMS = "layer.safetensors", "report.html", "study.db", "arms"
COMPLETIONS = "completions.parquet"
ADAPTER = "adapter"
"""Folder of the adapters that --adapter trained, in PEFT's format."""
TENSORBOARD = "tensorboard"
"""Folder of the event files that --track writes."""
PUBLIC = (RESULT, "contribution.json", "comparison.json")
"""Files whose schema has no place for a digest, which is in a file beside them."""
RUN = "run_signature"
"""Key of the signature that binds a stage's file to its run."""
LOCK = ".lock"
"""File that the process which works in the folder has locked."""

Place = Callable[[Path, Path], object]


class RunFolder:
    """The folder of one run. The first write creates it on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns a stage's JSON, or None if that stage has not finished. Damage is refused."""
        file = self.path / name
        if not file.exists():
            return None
        try:
            if not file.is_file():
                raise ValueError(NO_FILE)
            value = json.loads(file.read_text())
            if not isinstance(value, dict):
                raise ValueError("it holds no JSON object")
            if name in PUBLIC:
                check_digest_beside(file)
            content = unseal(name, value)
            if name != CONFIG:
                self.check_writer(content.get("signature") if name in PUBLIC else content.pop(RUN, None))
            return content
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, error) from None

    @property
    def signature(self) -> str | None:
        """The run's signature, from config.json; None if there is no such file."""
        return (RunFolder.read(self, CONFIG) or {}).get("signature")  # not the method that waits for every rank

    def check_writer(self, signature: str | None) -> None:
        """Checks that a file was written by this run, where both signatures are known.

        Raises:
            ValueError: Another run has written it.
        """
        if signature and self.signature and signature != self.signature:
            raise ValueError(f"it belongs to another run, whose signature is {signature}; here it is {self.signature}")

    def has(self, *names: str) -> bool:
        """Returns True if at least one of these files or folders exists."""
        return any((self.path / name).exists() for name in names)

    def damaged(self, name: str, reason: object) -> RunFolderError:
        """Builds the error for an unusable file, with the remedy that loses the least work."""
        cure = "delete that file to redo its stage"
        if name == CONFIG:  # it alone says which configuration the other files belong to
            cure = "restore that file, delete the folder to start again"
        elif name.startswith(ARMS):
            cure = f"restore that file, {self.search_again}"
        why = " ".join(str(reason).partition(" [type=")[0].split())[:200]  # pydantic's errors have several lines
        return RunFolderError(f"{self.path / name} is damaged ({why}): {cure}, or choose another --out.")

    @property
    def search_again(self) -> str:
        """The advice to redo the search. Its arms and its study rest on each other, so one alone is of no use."""
        return f"delete {self / ARMS} and the study ({STUDY}, or give another --storage) together to train again"

    def write(self, name: str, value: dict[str, Any], *, indent: int | None = 1, place: Place = os.replace) -> None:
        """Writes a stage's JSON atomically, with its digest. A value that is NaN or infinite raises a ValueError."""
        if name not in PUBLIC:
            run = None if name == CONFIG else self.signature
            value = seal(name, {**value, **({RUN: run} if run else {})})
        text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
        write = self._write_with_digest_beside if name in PUBLIC else self.write_text
        write(name, text, place)

    def write_text(self, name: str, text: str, place: Place = os.replace) -> None:
        """Writes a file atomically, and replaces a link instead of writing to where it leads."""
        write_whole(self.path / name, lambda path: path.write_text(text, encoding="utf-8"), place)

    def _write_with_digest_beside(self, name: str, text: str, place: Place) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        add_digest_beside(self.path / name, text.encode())
        self.write_text(name, text, place)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against other processes while the block runs, or refuses if one of them holds the lock."""
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK)  # in the folder itself, which may have several names
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"another process is working in {self.path}: wait until it ends, or choose another --out."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"{self.path} is on a file system that cannot lock files ({error.strerror}): choose another --out."
            ) from error
        try:
            if (self.path / CONFIG).exists():
                sweep(self.path)
            yield
        finally:
            # A process that already opened the file notices that it was removed.
            (self.path / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # a user's code may have closed its file
                lock.release()
            with suppress(OSError):  # not empty
                self.path.rmdir()

    def check(self) -> None:
        """Refuses a path that is no place for a folder, and files of the run that are links to another place."""
        try:
            if (self.path.exists() or self.path.is_symlink()) and not self.path.is_dir():
                raise NotADirectoryError
            if not self.path.exists():
                with tempfile.TemporaryFile(
                    dir=next(place for place in self.path.absolute().parents if place.exists())
                ):
                    pass
        except NotADirectoryError:
            raise RunFolderError(f"--out {self.path} is a file, or below one: give a folder.") from None
        except OSError as error:
            raise RunFolderError(f"--out {self.path} cannot be written to ({error.strerror}): give another.") from None
        below = [path for name in (ARMS, ADAPTER, TENSORBOARD) for path in self.path.glob(f"{name}/**/*")]
        inside = [*self.path.glob("*"), *below]
        # Asked for last, because another process may delete a file meanwhile.
        if odd := [path for path in inside if not path.is_file() and not path.is_dir() and path.exists()]:
            raise RunFolderError(f"{odd[0]} is {NO_FILE}: delete it and repeat the command, or choose another --out.")
        if links := [path for path in inside if path.is_symlink()]:
            raise RunFolderError(
                f"{links[0]} is a link, through which the run would write to another place: replace it by what it "
                "leads to, or choose another --out."
            )

    def start_or_resume(self, settings: dict[str, Any], *, accept_changes: bool = False) -> dict[str, Any]:
        """Writes config.json into a new folder, or checks that the folder belongs to a run with these settings.

        `settings` decide what the run does, and hold hashes of the user's files. With `accept_changes`, a run resumes
        although those files have changed, and keeps its signature. Returns the content of config.json: the settings,
        their hash as 'signature', and in 'changed' the kinds of files that have changed during the run.
        """
        self.check()
        signature = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        started = {"signature": signature, **settings}
        inside = {path.name for path in self.path.glob("*") if not re.fullmatch(f"{TEMPORARY}|{LOCK}", path.name)}
        if not self.has(CONFIG):  # asked after listing, because another worker may create it
            if inside == {CALIBRATION}:
                (self / CALIBRATION).unlink(missing_ok=True)  # a run without a signal left it
            elif inside:
                raise RunFolderError(
                    f"--out {self.path} is not empty and is not a run folder (it has no {CONFIG}): give a new folder."
                )
            with suppress(FileExistsError):  # another worker was faster
                self.write(CONFIG, started, place=_create)
                return started
        before = self.read(CONFIG) or {}
        if "signature" not in before:
            raise self.damaged(CONFIG, "it has no signature")
        now = json.loads(json.dumps(settings))
        differing = [name for name in now if before.get(name) != now[name]]
        if not differing and (before["signature"] == signature or "changed" in before):
            return before
        files = [name.removesuffix("_hash") for name in differing if name.endswith("_hash") and name != "base_hash"]
        if not files or len(files) < len(differing):
            values = "; ".join(f"{name}: {before.get(name)} there, {now[name]} here" for name in differing)
            raise RunFolderError(
                f"--out {self.path} belongs to another configuration ({values or 'signature'}): choose another --out, "
                "or repeat the command that made it to resume it."
            )
        if not accept_changes:
            raise RunFolderError(
                f"the {' and '.join(files)} file has changed since the run in {self.path} was made, which changes "
                "its results: give a new --out to start again, restore the old file, or give --accept-changes to "
                "continue anyway (the result records the change)."
            )
        changed = sorted({*before.get("changed", ()), *files})
        self.write(CONFIG, {**before, **settings, "changed": changed})
        return {**before, **settings, "changed": changed}

    def abandon(self) -> None:
        """Deletes config.json if no stage has finished, so that a corrected reward can use the same --out."""
        names = {path.name for path in self.path.iterdir()} - {LOCK}
        if names <= {CONFIG, CALIBRATION}:
            (self / CONFIG).unlink(missing_ok=True)
            with suppress(OSError):  # not empty: calibration.json says why there is no signal
                self.path.rmdir()


def _create(temporary: Path, path: Path) -> None:
    """Moves a file to a path where there is none."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        temporary.replace(path)


def open_run(config: "Config", verb: str = "pick") -> RunFolder:
    """Returns the run folder of a configuration: `--out`, or a name made from verb, model, task and signature."""
    if config.out is not None:
        return RunFolder(config.out)
    model = Path(config.model).name if Path(config.model).exists() else config.model
    words = [model, config.task_name, config.signature]
    words = words if verb == "pick" else [verb, *words]
    return RunFolder(Path("runs") / "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in w) for w in words))
