"""Files that are whole or refused: written completely or not at all, and sealed by a digest of their content."""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DIGEST = "digest"
"""Key of the digest in a JSON object, and in the metadata of a safetensors file."""
NO_FILE = "no regular file, but a folder, a pipe or a device"
"""Said of what has the name of a file. A pipe would be waited for without end."""
TEMPORARY = r"\..+\.[0-9a-f]{32}"
"""Pattern of the names of files that are being written."""


def write_whole(
    path: Path, write: Callable[[Path], object], place: Callable[[Path, Path], object] = os.replace
) -> None:
    """Writes a file completely or not at all, and waits until it is on the disk.

    Args:
        path: The file. Its folder is made if it does not exist.
        write: Writes the content to the path that it gets, in the same folder.
        place: Moves that file to `path`.

    Raises:
        OSError: It cannot be written; the error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # another worker may be writing the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        sync(temporary)
        place(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of entries, is on the disk; some file systems cannot do it for folders."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise


def sweep(folder: Path) -> None:
    """Deletes the files that a killed process was writing in a folder. No other process may be working in it."""
    for path in folder.rglob(".*"):
        if re.fullmatch(TEMPORARY, path.name):
            path.unlink(missing_ok=True)


def seal(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with a digest of its name and its content.

    The name keeps two objects from taking each other's place.
    """
    content = {key: part for key, part in value.items() if key != DIGEST}
    return {**content, DIGEST: _digest(name, content)}


def unseal(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content that `seal` was given. What has no digest was written by an older version, and is accepted.

    Raises:
        ValueError: The content or the name is another one.
    """
    content = {key: part for key, part in value.items() if key != DIGEST}
    if DIGEST in value and value[DIGEST] != _digest(name, content):
        raise ValueError("its content has changed since it was written")
    return content


def digests_beside(path: Path) -> Path:
    """Returns the file beside another that lists the digests of all contents that it was written with."""
    return path.with_name(f".{path.name}.{DIGEST}")


def add_digest_beside(path: Path, content: bytes) -> None:
    """Records the digest of a content that is written next, whatever other workers write at the same time."""
    with digests_beside(path).open("a") as stream:
        stream.write(f"\n{digest_of(content)}")  # the line before may be half of one
        stream.flush()
        os.fsync(stream.fileno())


def check_digest_beside(path: Path) -> None:
    """Checks a file by the digests beside it, if there are any.

    Raises:
        ValueError: The file is another one.
    """
    beside = digests_beside(path)
    if beside.is_file() and digest_of(path.read_bytes()) not in beside.read_text().split():
        raise ValueError("its content has changed since it was written")


def digest_of(content: bytes) -> str:
    """Returns the digest of some bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest(name: str, content: Mapping[str, Any]) -> str:
    stored = json.loads(json.dumps(content, allow_nan=False))  # keys that are numbers become text
    return digest_of(f"{name}\n{json.dumps(stored, sort_keys=True)}".encode())
