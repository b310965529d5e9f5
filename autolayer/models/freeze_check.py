"""Checks that a freeze held, by checksums of the frozen weights and by hooks on gradients and optimizer steps.

Optimizers that are not a `torch.optim.Optimizer` (DeepSpeed) and sharded trained parameters are not observed; for them
only the check on leaving counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from autolayer.core.errors import LayerError
from autolayer.core.layer_set import name_layers

CHUNK = 1 << 20
"""Number of 8-byte words hashed at once, which limits the temporary memory to a few times 8 MB."""

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit multipliers (those of splitmix64), as signed integers."""


def checksum(tensor: torch.Tensor) -> int:
    """Returns a 64-bit checksum that depends on every bit of a tensor and its place; one changed element always shows.

    Args:
        tensor: A tensor of any shape, dtype and device; the result does not depend on the device. For a sharded
            tensor, the shard of this process is hashed.
    """
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = raw.numel() // 8 * 8
    tail = int.from_bytes(bytes(raw[whole:].tolist()), "little")
    words = raw[:whole]
    if words.storage_offset() % 8:  # `view` to a wider type requires an aligned start
        words = words.clone()
    words = words.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=raw.device)
    for start in range(0, words.numel(), CHUNK):
        chunk = words[start : start + CHUNK]
        # Every step is invertible for a given place, so one changed word cannot go unseen.
        mixed = torch.arange(start, start + chunk.numel(), device=raw.device).mul_(_ODD[0]).add_(chunk).mul_(_ODD[1])
        mixed ^= (mixed >> 32) & 0xFFFFFFFF  # the mask undoes the arithmetic shift's sign
        total += mixed.mul_(_ODD[2]).sum()
    return hash((raw.numel(), tail, int(total)))


class FreezeCheck:
    """Observes the training of some parameters while it is entered, and raises when the freeze did not hold.

    An optimizer counts as one of this model if it holds any of its parameters, or, once a backward pass has reached
    the trained ones, if everything it holds has the shape of a trained one (float32 master copies).

    Args:
        model: The model that the parameters belong to; nested checks of one model pause each other.
        trained: Trained parameters by layer; each of these layers must get a gradient.
        frozen: Parameters that must not change, by name.
    """

    def __init__(
        self, model: nn.Module, trained: Mapping[int, Sequence[nn.Parameter]], frozen: Mapping[str, nn.Parameter]
    ) -> None:
        self.model = model
        self.trained = trained
        self.frozen = frozen
        self.paused = False
        self._layer_of = {id(p): layer for layer, parameters in trained.items() for p in parameters}
        self._frozen_ids = {id(p) for p in frozen.values()}
        self._shapes = {p.shape for parameters in trained.values() for p in parameters}
        self._before: dict[str, tuple[torch.dtype, int]] = {}
        self._waiting = set(trained)
        self._held: set[int] = set()
        self._steps: dict[int, int] = {}
        self._has_master = False
        self._backward_seen = False
        self._checked = False
        self._handles: dict[int, list[Any]] = {}
        self._step_handle: Any = None

    def __enter__(self) -> FreezeCheck:
        outer = _ACTIVE.setdefault(self.model, [])
        if outer:
            outer[-1].paused = True
        outer.append(self)
        try:
            self._before = {name: (p.dtype, checksum(p)) for name, p in self.frozen.items()}
            for layer, parameters in self.trained.items():
                self._handles[layer] = []
                for parameter in parameters:
                    # A tensor hook sees the gradient when it arrives, even if `.grad` is moved away later.
                    handle = parameter.register_hook(lambda gradient, layer=layer: self._on_gradient(layer, gradient))
                    self._handles[layer].append(handle)
            self._step_handle = register_optimizer_step_post_hook(self._after_step)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._step_handle is not None:
            self._step_handle.remove()
        for layer in self.trained:
            self._stop_observing(layer)
        active = _ACTIVE[self.model]
        active.remove(self)
        if active:
            active[-1]._resume(self._layer_of)

    def verify(self, *, expect_gradient: bool = True) -> None:
        """Checks on leaving that only the trained layers were trained, and all of them.

        Args:
            expect_gradient: Raise if there were optimizer steps and no gradient at all.

        Raises:
            LayerError: A frozen weight changed, a layer got no gradient, or no optimizer holds it.
        """
        self._check_frozen(leaving=True)
        if self._steps:
            self._check_held()
        if self._waiting == set(self.trained):
            if self._steps and expect_gradient:
                raise LayerError(
                    f"no gradient reached {name_layers(self.trained)} in {max(self._steps.values())} optimizer steps: "
                    "all advantages were zero, or the loss does not depend on them; look at the spread of the rewards."
                )
        else:
            self._check_gradients()

    def _on_gradient(self, layer: int, gradient: torch.Tensor) -> None:
        if self.paused:
            return
        self._backward_seen = True
        if layer in self._waiting and bool(gradient.any()):
            self._waiting.discard(layer)
            self._stop_observing(layer)

    def _stop_observing(self, layer: int) -> None:
        for handle in self._handles.pop(layer, []):
            handle.remove()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.paused:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        trained = {id(p) for p in parameters} & self._layer_of.keys()
        masters = not trained and not {id(p) for p in parameters} & self._frozen_ids
        if masters and (not self._backward_seen or {p.shape for p in parameters} - self._shapes):
            return
        self._has_master |= masters
        self._held |= trained
        self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        # Master copies are written into the model after their step, so its effect shows only at the next one.
        due = not masters or self._steps[id(optimizer)] > 1
        if due and not self._checked and self._waiting != set(self.trained):
            self._checked = True
            self._check_gradients()
            self._check_frozen()
        if self._steps[id(optimizer)] == 2:  # by now every optimizer of the loop has made a step
            self._check_held()

    def _check_gradients(self) -> None:
        if self._waiting:
            raise LayerError(
                f"no gradient reached {name_layers(self._waiting)} although it reached the other trained layers: the "
                "loss does not depend on them; train only layers that the forward pass uses."
            )

    def _check_held(self) -> None:
        missing = set(self.trained) - {self._layer_of[i] for i in self._held}
        if missing and not self._has_master:
            raise LayerError(
                f"the optimizer does not hold {name_layers(missing)}, so nothing is trained there: it was built before "
                "train_only, or with other parameters; build it inside, from the parameters that require grad."
            )

    def _check_frozen(self, *, leaving: bool = False) -> None:
        changed = []
        for name, p in self.frozen.items():
            dtype, _ = before = self._before[name]
            if p.dtype != dtype and not leaving and torch.equal(p.to(dtype).to(p.dtype), p):
                p = p.to(dtype)  # temporarily widened, such as a router inside `fp32_layers`
            if (p.dtype, checksum(p)) != before:
                changed.append(name)
        if changed:
            names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise LayerError(
                f"frozen weights changed while only {name_layers(self.trained)} should train: {names}; "
                "something else writes to the model: look for a second optimizer, a cast or a load inside train_only."
            )

    def _resume(self, changed_ids: Mapping[int, int]) -> None:
        """Resumes after a nested check, whose trained parameters were allowed to change."""
        self.paused = False
        self._before |= {n: (p.dtype, checksum(p)) for n, p in self.frozen.items() if id(p) in changed_ids}


_ACTIVE: WeakKeyDictionary[nn.Module, list[FreezeCheck]] = WeakKeyDictionary()
"""The active checks of each model, innermost last; all but the innermost are paused."""
