"""Sets of layers: the type, how a user writes them, and the indices they stand for in a model."""

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex

from autolayer.core.errors import LayerError
from autolayer.core.formatting import listed

Layers = tuple[int, ...] | Literal["full"]
"""A sorted set of block indices, or every parameter of the model (the full-parameter reference)."""
LayersLike = int | str | Sequence[int]
"""A set of layers as a user gives it: 16, "10-14", "8,16", "middle:5", [8, 16], range(10, 15); negatives count from the
end."""
_WORD = re.compile(r"\s*(first|middle|last|position)(?::([1-9]\d{0,8}))?\s*")
"""The name of a depth baseline (`depth_prior.DEPTH_BASELINES`), and how many layers it chooses: middle, last:3."""


class Span(NamedTuple):
    """Consecutive layers, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def layers_text(layers: LayersLike) -> str:
    """Returns a set of layers as text in its shortest form, or "full": [8, 16] is "8,16", range(10, 15) is "10-14"."""
    if layers == "full":
        return "full"
    if isinstance(layers, str) and _WORD.fullmatch(layers):  # stands for indices once the number of layers is known
        return layers.strip()
    spans = _spans(layers)
    if all(span.first >= 0 for span in spans):  # negatives have no place until the number of layers is known
        spans = _merged(spans)
    return ",".join(map(str, spans))


def name_layers(layers: Iterable[int] | Literal["full"]) -> str:
    """Names a set of layers in a sentence: 'layer 3', 'layers 0, 1 and 3-5', 'all layers' or 'no layer'."""
    if layers == "full":
        return "all layers"
    names: list[str] = []
    for first, last in _merged(Span(layer, layer) for layer in layers):
        names += [f"{first}-{last}"] if last > first + 1 else map(str, range(first, last + 1))
    if not names:
        return "no layer"
    return f"layer{'s' * (len(names) > 1 or '-' in names[0])} {listed(names)}"


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.first <= merged[-1].last + 1:
            span = Span(merged[-1].first, max(merged.pop().last, span.last))
        merged.append(span)
    return merged


def parse_layers(layers: LayersLike | None, num_layers: int, model_name: str, *, allow_full: bool = False) -> Layers:
    """Returns the sorted non-negative indices that a set of layers stands for in one model (None: all), or "full"."""
    if layers is None:
        return tuple(range(num_layers))
    if layers == "full":
        if not allow_full:
            raise LayerError("'full' is no layer but every parameter at once: give layers, such as 16, 10-14 or 8,16.")
        return "full"
    if isinstance(layers, str) and (word := _WORD.fullmatch(layers)):
        from autolayer.core.depth_prior import scores  # needs numpy, which `--help` does without

        if int(word[2] or 1) > num_layers:
            raise LayerError(f"layers {layers!r} cannot be chosen: {model_name} has only {num_layers} blocks.")
        best_first = (-scores(word[1], range(num_layers), num_layers)).argsort(kind="stable")
        return tuple(sorted(map(int, best_first[: int(word[2] or 1)])))
    spans = _spans(layers)
    for index in (index for span in spans for index in span):
        if not -num_layers <= index < num_layers:
            raise LayerError(
                f"layer {index} does not exist: {model_name} has {num_layers} blocks "
                f"(0..{num_layers - 1}, or {-num_layers}..-1)."
            )
    chosen: set[int] = set()
    for span in (Span(span.first % num_layers, span.last % num_layers) for span in spans):
        if span.first > span.last:
            raise _empty(layers, span)
        chosen.update(range(span.first, span.last + 1))
    return tuple(sorted(chosen))


def _spans(layers: Any) -> list[Span]:
    parts = layers.split(",") if isinstance(layers, str) else layers if isinstance(layers, Iterable) else [layers]
    spans = [_span(part, layers) for part in parts]
    if not spans:
        raise LayerError("no layer given: give at least one, such as 16, 10-14 or 8,16.")
    for span in spans:
        if (span.first < 0) == (span.last < 0) and span.first > span.last:
            raise _empty(layers, span)
    return spans


def _span(part: Any, layers: Any) -> Span:
    if isinstance(part, str) and (match := re.fullmatch(r"\s*(-?\d+)(?:\s*-\s*(-?\d+))?\s*", part)):
        return Span(int(match[1]), int(match[2] or match[1]))
    if isinstance(part, SupportsIndex) and not isinstance(part, bool):
        return Span(operator.index(part), operator.index(part))
    raise LayerError(
        f"layers {layers!r} cannot be read: give 16, 10-14 or 8,16 (-1 is the last one), or first, middle, last or "
        "position, with or without a number (middle:5)."
    )


def _empty(layers: Any, span: Span) -> LayerError:
    return LayerError(
        f"layers {layers!r} cannot be read: the range {span} is empty; give {Span(span.last, span.first)}."
    )
