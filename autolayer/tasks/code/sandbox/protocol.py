"""The protocol between the host and the sandbox: jobs as frames, and plain Python values as lines of JSON.

A value leaves the sandbox as data and is built anew from it. Nothing that the program defined, such as a subclass of
int whose `__eq__` is always true, reaches the code that compares. This module runs on both sides and imports only the
standard library.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 100_000  # taken from an iterator, which may have no end
_LARGE = 1 << 1024  # from here on an integer travels in hexadecimal: Python refuses to read long decimal ones


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for a value that is not plain data. It is equal to nothing but itself."""

    kind: str


@dataclass(frozen=True)
class Failed:
    """Stands for the value of a call that raised an exception."""

    error: str
    """Name of the exception's class."""


def encode(value: Any) -> str:
    """Returns a value as one line of JSON."""
    return json.dumps(_tagged(value, 0))


def decode(text: str | bytes, *, max_hashed: int | None = None) -> Any:
    """Returns the value of a line that `encode` made, or that a program forged.

    Args:
        text: The line.
        max_hashed: The largest set or dictionary to accept from a line that is not trusted. A program can choose
            integers whose hashes are all equal, and building a set of them takes quadratic time.

    Raises:
        ValueError: It is not such a line.
    """
    try:
        return _untagged(json.loads(text), max_hashed)
    except Exception as error:  # forged bytes may fail in any way
        raise ValueError(f"not an encoded value: {type(error).__name__}") from None


def _tagged(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        return ["opaque", "nested too deeply"]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return ["int", hex(value)] if abs(value) >= _LARGE else int(value)
    if isinstance(value, (float, str)):
        return float(value) if isinstance(value, float) else str(value)
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, Failed):
        return ["failed", value.error]
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
    "failed": lambda error: Failed(str(error)[:100]),
}
_BUILD_FROM_ITEMS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter, "dict": dict}


def _untagged(data: Any, max_hashed: int | None) -> Any:
    if isinstance(data, dict):
        raise ValueError("an untagged dictionary")
    if not isinstance(data, list):
        return data
    kind, payload = data
    if kind in _BUILD:
        return _BUILD[kind](payload)
    if kind in ("set", "frozenset", "dict") and max_hashed is not None and len(payload) > max_hashed:
        raise ValueError(f"a {kind} of {len(payload)} items")
    if kind == "dict":
        payload = [["tuple", pair] for pair in payload]
    return _BUILD_FROM_ITEMS[kind]([_untagged(item, max_hashed) for item in payload])
