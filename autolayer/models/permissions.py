"""Files that others may read as the user's umask says: safetensors and temporary folders make private ones."""

from __future__ import annotations

import os
from pathlib import Path


def follow_umask(path: Path) -> None:
    """Gives a file, or a folder and all in it, the permissions that an ordinary one would have."""
    mask = os.umask(0)
    os.umask(mask)
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        each.chmod((0o777 if each.is_dir() else 0o666) & ~mask)
