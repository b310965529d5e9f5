"""Plain Python values as JSON, for the calls that a judge makes and the answers of the program.

A value is built anew from data, so nothing that the program defined, such as a subclass of int whose `__eq__` is always
true, reaches the tests. Only the standard library can be imported here.
"""

import itertools
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 100_000  # taken from an iterator, which may have no end
_LARGE = 1 << 1024  # from here on an integer travels in hexadecimal: Python refuses to read long decimal ones


class Opaque:
    """Stands for a value that is not plain data. It is equal to nothing but itself."""


def to_json(value: Any, depth: int = 0) -> Any:
    """Returns a value in types that JSON has; others are a list of their name and their content."""
    if depth > MAX_DEPTH:
        return ["opaque", None]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return ["int", hex(value)] if abs(value) >= _LARGE else int(value)
    if isinstance(value, (float, str)):
        return float(value) if isinstance(value, float) else str(value)
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).decode("latin-1")]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, dict):
        return ["dict", [["tuple", [to_json(k, depth + 1), to_json(v, depth + 1)]] for k, v in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [to_json(item, depth + 1) for item in value]]
    if isinstance(value, Iterator):
        return ["iterator", [to_json(item, depth + 1) for item in itertools.islice(value, MAX_ITEMS)]]
    return ["opaque", None]


_BUILD: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "bytes": lambda text: text.encode("latin-1"),
    "range": lambda parts: range(*parts),
    "opaque": lambda _: Opaque(),
}
_BUILD_FROM_ITEMS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter, "dict": dict}


def from_json(data: Any) -> Any:
    """Returns the value that `to_json` was given. Forged data may raise any exception."""
    if not isinstance(data, list):
        return data
    kind, content = data
    if kind in _BUILD:
        return _BUILD[kind](content)
    return _BUILD_FROM_ITEMS[kind](map(from_json, content))
