"""AdamW for RL-sized updates: float32 weights, gradients and moments, whatever the module's dtype.

A bf16 weight keeps about three digits, and a step of 5e-6 changes only 3-8% of its entries (arXiv 2511.08567 sees
the same from outside). So the trained parameters have a float32 master here; the module gets its rounded copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from autolayer.core.errors import TrainingError


class MasterAdamW(torch.optim.Optimizer):
    """AdamW on float32 masters of the given parameters.

    Gradients are moved into a float32 accumulator as soon as each is ready, so micro-batches add up in float32
    and the module holds none. Gradient clipping happens here, since nothing is left for the trainer to clip.

    Args:
        parameters: Full name -> parameter; the names are the keys of the checkpoint.
        lr: Learning rate.
        max_grad_norm: Clip the gradient's norm over all parameters to this.
        boosts: Full name -> factor on the rate; 1 for those that are not named.
        average: Replaces gradients by their mean over all processes.

    Raises:
        TrainingError: In `step`, when the gradient is not finite.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        max_grad_norm: float = 1.0,
        boosts: Mapping[str, float] = MappingProxyType({}),
        average: Callable[[list[torch.Tensor]], None] = lambda gradients: None,
    ) -> None:
        super().__init__(list(parameters.values()), {"lr": lr})
        self.named = dict(parameters)
        self.max_grad_norm, self.average = max_grad_norm, average
        self.masters = {name: p.detach().to(torch.float32, copy=True) for name, p in self.named.items()}
        factors = {name: boosts.get(name, 1.0) for name in self.masters}
        groups = [
            {"params": [m for name, m in self.masters.items() if factors[name] == factor], "factor": factor}
            for factor in sorted(set(factors.values()))
        ]
        self.inner = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
        self.last_grad_norm = 0.0
        self._hooks = [p.register_post_accumulate_grad_hook(self._mover(name)) for name, p in self.named.items()]

    def _mover(self, name: str) -> Callable[[torch.Tensor], None]:
        master = self.masters[name]

        def move(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

        return move

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        self.average([m.grad for m in self.masters.values() if m.grad is not None])
        self._update()

    @torch.no_grad()
    def step_by(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """A step by what `GradientKeeper` has kept, as if this had been gathered here; it is clipped here.

        Args:
            gradients: Those of every parameter that a backward pass would have reached, averaged over the processes; on
                the device, and used up.
        """
        for name, gradient in gradients.items():
            self.masters[name].grad = gradient
        self._update()

    def _update(self) -> None:
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.last_grad_norm = float(norm)
        if not math.isfinite(self.last_grad_norm):
            raise TrainingError(
                f"the gradient became {self.last_grad_norm}: training diverged, give a smaller --learning-rate than "
                f"{self.param_groups[0]['lr']:g}."
            )
        nn.utils.clip_grads_with_norm_(self.masters.values(), self.max_grad_norm, norm)
        for group in self.inner.param_groups:
            group["lr"] = self.param_groups[0]["lr"] * group["factor"]
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        for name, parameter in self.named.items():
            parameter.copy_(self.masters[name])

    def close(self) -> None:
        """Takes the gradient hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name, for a checkpoint: `{kind}:{parameter}`."""
        state = self.inner.state
        found = {f"master:{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            found |= {f"{kind}:{name}": value for kind, value in state.get(master, {}).items()}
        return {key: value.detach().cpu().clone() for key, value in found.items()}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `tensors` saved, and copies the masters into the module."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"master:{name}"])
                self.named[name].copy_(master)
                kinds = {key.split(":", 1)[0] for key in tensors if key.endswith(f":{name}")} - {"master"}
                state: dict[str, Any] = {
                    kind: tensors[f"{kind}:{name}"].clone().to("cpu" if kind == "step" else master.device)
                    for kind in kinds
                }
                if state:
                    self.inner.state[master] = state


class GradientKeeper(torch.optim.Optimizer):
    """Takes no step: keeps the gradient that a step would be made by, in float32 on the host.

    For the parameters of many layers at once: each gradient leaves the device the moment it is complete, so the device
    needs no room for them. They are added up over the micro-batches as `MasterAdamW` does, so that its step by this is
    the step it would have made itself, bit for bit.

    Args:
        parameters: Full name -> parameter; all want a gradient.
        average: Replaces gradients by their mean over all processes, in `step`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        average: Callable[[list[torch.Tensor]], None] = lambda gradients: None,
    ) -> None:
        super().__init__(list(parameters.values()), {"lr": 0.0})
        self.named, self.average = dict(parameters), average
        self.gradients: dict[str, torch.Tensor] = {}
        """Of the parameters that a backward pass has reached."""
        self._hooks = [p.register_post_accumulate_grad_hook(self._mover(name)) for name, p in self.named.items()]

    def _mover(self, name: str) -> Callable[[torch.Tensor], None]:
        def move(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.to("cpu", torch.float32)
            held = self.gradients.get(name)
            self.gradients[name] = gradient if held is None else held.add_(gradient)
            parameter.grad = None

        return move

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        for name in [name for name in self.named if name in self.gradients]:  # alike in every process
            gradient = self.gradients[name].to(self.named[name].device)
            self.average([gradient])
            self.gradients[name] = gradient.cpu()

    def close(self) -> None:
        """Takes the gradient hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
