"""The type that names which layers are trained."""

from __future__ import annotations

from typing import Literal

Layers = tuple[int, ...] | Literal["full"]
"""A sorted set of block indices, or every parameter of the model (the full-parameter reference)."""
