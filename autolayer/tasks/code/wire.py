"""What crosses the wall of the sandbox: frames of bytes, and plain Python values as JSON.

A value comes out as data and is built anew from it, so nothing that the code under test defined (an `__eq__` that is
always true, a subclass of int) reaches whoever compares. Runs on both sides of the wall. Standard library only.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 100_000  # taken from an iterator, which may have no end
BIG = 1 << 1024  # from here on an integer travels in hexadecimal: Python refuses to read long decimal ones


class Opaque:
    """Stands for a value that is no plain data; equal to nothing but itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def send(descriptor: int, payload: bytes) -> None:
    """Writes one frame: four bytes of length, then the payload."""
    data = memoryview(struct.pack(">I", len(payload)) + payload)
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> bytes | None:
    """One frame, reading not a byte beyond it; None where the stream has ended."""
    header = _exactly(descriptor, 4)
    return None if header is None else _exactly(descriptor, struct.unpack(">I", header)[0])


def encode(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(_tagged(value, 0))


def decode(text: str | bytes, *, max_hashed: int | None = None) -> Any:
    """The value of a line that `encode` made, or somebody who forged it.

    Args:
        text: The line.
        max_hashed: Items of a set or dictionary, at the most, where the line is not to be trusted: integers can be
            chosen whose hashes are all equal, and then a set of them takes time that grows with the square.

    Raises:
        ValueError: It is no such line.
    """
    try:
        return _untagged(json.loads(text), max_hashed)
    except Exception as error:  # forged bytes may fail in any way
        raise ValueError(f"no encoded value: {type(error).__name__}") from None


def _tagged(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        return ["opaque", "nested too deeply"]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return ["int", hex(value)] if abs(value) >= BIG else int(value)
    if isinstance(value, (float, str)):
        return float(value) if isinstance(value, float) else str(value)
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).decode("latin-1")]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, dict):
        return ["dict", [[_tagged(k, depth + 1), _tagged(v, depth + 1)] for k, v in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [_tagged(item, depth + 1) for item in value]]
    if isinstance(value, Iterator):
        return ["iterator", [_tagged(item, depth + 1) for item in itertools.islice(value, MAX_ITEMS)]]
    return ["opaque", type(value).__name__]


_BUILD: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*map(float, parts)),
    "bytes": lambda text: text.encode("latin-1"),
    "range": lambda parts: range(*map(int, parts)),
    "opaque": lambda kind: Opaque(str(kind)[:100]),
}
_BUILD_FROM_ITEMS: dict[str, Any] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter,
}  # fmt: skip
_HASHED = ("set", "frozenset", "dict")


def _untagged(data: Any, max_hashed: int | None) -> Any:
    if isinstance(data, dict):
        raise ValueError("an untagged dictionary")
    if not isinstance(data, list):
        return data
    kind, payload = data
    if kind in _BUILD:
        return _BUILD[kind](payload)
    if kind in _HASHED and max_hashed is not None and len(payload) > max_hashed:
        raise ValueError(f"a {kind} of {len(payload)} items")
    if kind == "dict":
        return {_untagged(key, max_hashed): _untagged(item, max_hashed) for key, item in payload}
    return _BUILD_FROM_ITEMS[kind]([_untagged(item, max_hashed) for item in payload])


def _exactly(descriptor: int, num: int) -> bytes | None:
    parts = []
    while num:
        part = os.read(descriptor, min(num, 1 << 20))
        if not part:
            return None
        parts.append(part)
        num -= len(part)
    return b"".join(parts)
