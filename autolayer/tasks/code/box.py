"""Started by `unshare` in namespaces of its own: builds the small file system of the sandbox and starts Python in it.

    python box.py '{"binds": [...], "devices": [...], "hidden": [...], "command": [...]}'

What bubblewrap does by its options, for machines that do not have it. Standard library only, imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys

ROOT = "/sys"  # exists everywhere and holds nothing that is bound, so that the new root can be built over it
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x40000, 2
_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4
_AT_CURRENT, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442

libc = ctypes.CDLL(None, use_errno=True)


def main(plan: dict) -> None:
    """Replaces this process by the plan's command, in the new root."""
    mount(None, "/", None, _RECURSIVE | _PRIVATE)
    mount("box", ROOT, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    for source in plan["binds"] + plan["devices"]:
        bind(source, plan.get("renamed", {}).get(source, source), devices=source in plan["devices"])
    for folder in plan["hidden"]:
        mount("hidden", ROOT + folder, "tmpfs", _NO_SUID | _NO_DEVICES | _READ_ONLY, "mode=755,size=0")
    os.makedirs(ROOT + "/tmp")
    restrict(ROOT, _READ_ONLY | _NO_SUID)
    os.chdir(ROOT)
    check(libc.syscall(pivot_root_number(), b".", b"."), "pivot_root")
    check(libc.umount2(b".", _DETACH), "unmounting the old root")
    os.chdir("/")
    os.execv(plan["command"][0], plan["command"])


def bind(source: str, target: str, *, devices: bool) -> None:
    place = ROOT + target
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_RDONLY))
    mount(source, place, None, _BIND | _RECURSIVE)
    if not devices:
        restrict(place, _READ_ONLY | _NO_SUID | _NO_DEVICES)


def restrict(place: str, attributes: int) -> None:
    """Adds mount attributes to a mount and all below it; unlike a remount it keeps those that are there."""
    request = ctypes.create_string_buffer(struct.pack("QQQQ", attributes, 0, 0, 0))
    arguments = (_AT_CURRENT, place.encode(), _AT_RECURSIVE, request, 32)
    check(libc.syscall(_MOUNT_SETATTR, *arguments), f"making {place} read-only (Linux 5.12 or later can)")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    check(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mounting {target}")


def pivot_root_number() -> int:
    return 155 if os.uname().machine == "x86_64" else 41


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except OSError as error:
        sys.exit(str(error))
