"""AdamW with float32 weights, gradients and moments, whatever the dtype of the model.

RL makes updates that bf16 cannot hold: a bf16 number has about three digits, so a step of 5e-6 changes only 3-8% of the
entries of a weight (arXiv 2511.08567 observes the same in trained models). The optimizer therefore updates a float32
master of each trained parameter, and copies it, rounded, into the model.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from autolayer.core.errors import TrainingError

MAX_GRAD_NORM = 1.0
"""Largest norm of the gradient over all parameters; larger gradients are scaled down to it."""


class MasterAdamW(torch.optim.Optimizer):
    """AdamW on float32 masters of the given parameters, whose full names are the keys of a checkpoint.

    Each gradient moves into a float32 accumulator as soon as it is ready, so micro-batches add up in float32 and the
    model holds no gradients. The optimizer therefore also clips them; the trainer would find none. `average` replaces
    each gradient of a list by its mean over all ranks, in place. `as_stored` rounds a parameter, given with its name,
    to the dtype of its checkpoint, where that is narrower than the model's.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        average: Callable[[list[torch.Tensor]], None] = lambda gradients: None,
        as_stored: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, tensor: tensor,
    ) -> None:
        super().__init__(list(parameters.values()), {"lr": lr})
        self.named = dict(parameters)
        self.average, self.as_stored = average, as_stored
        self.masters = {name: p.detach().to(torch.float32, copy=True) for name, p in self.named.items()}
        self.inner = torch.optim.AdamW(self.masters.values(), lr=lr, weight_decay=0.0)
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
        """Averages the gradients over the ranks, clips them, updates the masters and copies them into the model."""
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        self.average(gradients)
        norm = nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm) and not self.inner.state:
            raise TrainingError(
                f"the gradient is {float(norm)} in the first step, before any weight has changed, so the rate is not "
                "to blame: the model's own computation overflows or has no gradient; give it in bfloat16 or float32, "
                "or give another model."
            )
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient became {float(norm)}: training diverged, give a smaller --learning-rate than "
                f"{self.param_groups[0]['lr']:g}."
            )
        nn.utils.clip_grads_with_norm_(self.masters.values(), MAX_GRAD_NORM, norm)
        self.inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        for name, parameter in self.named.items():
            parameter.copy_(self.as_stored(name, self.masters[name]))

    @torch.no_grad()
    def update_size(self) -> float:
        """Returns the norm of the last update of the masters, divided by their norm."""
        squares = torch.zeros(2, dtype=torch.float64)
        for group in self.inner.param_groups:
            beta1, beta2 = group["betas"]
            for master in group["params"]:
                if state := self.inner.state.get(master):
                    steps = float(state["step"])
                    spread = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
                    update = state["exp_avg"] / spread * (group["lr"] / (1 - beta1**steps))
                    squares += torch.stack([update.norm(), master.norm()]).double().cpu().square()
        return float((squares[0] / squares[1]).sqrt()) if squares[1] else 0.0

    def close(self) -> None:
        """Removes the gradient hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of masters and Adam state on the CPU, for a checkpoint; the keys are `{kind}:{parameter}`."""
        state = self.inner.state
        found = {f"master:{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            found |= {f"{kind}:{name}": value for kind, value in state.get(master, {}).items()}
        return {key: value.detach().cpu().clone() for key, value in found.items()}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restores the state that `tensors` returned, and copies the masters into the model."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"master:{name}"])
                self.named[name].copy_(self.as_stored(name, master))
        for key, tensor in tensors.items():
            kind, _, name = key.partition(":")
            if kind != "master":
                master = self.masters[name]
                self.inner.state[master][kind] = tensor.clone().to("cpu" if kind == "step" else master.device)
