"""A report of which parameters of a model train, by layer, for somebody's own training script."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from autolayer.core.layer_set import name_layers
from autolayer.models.layers import count_parameters, find_layers, router_modules

PARTS = ("routers", "embeddings", "head", "norms", "other")


@dataclass(frozen=True, kw_only=True)
class Share:
    """The trained share of a part of a model."""

    trainable: int
    """Number of parameters that require gradients; tied ones count once."""
    total: int

    def __str__(self) -> str:
        if not self.trainable:
            return "frozen" if self.total else "none"
        share = "" if self.trainable == self.total else f" ({self.trainable / self.total:.2%})"
        return f"{self.trainable:,} of {self.total:,}{share}"


@dataclass(frozen=True, kw_only=True)
class FreezeReport:
    """The parameters of a model that require gradients. `print(report)` shows it as a small table."""

    name: str
    """Class of the model."""
    blocks: tuple[Share, ...]
    """The blocks in order, without their routers."""
    routers: Share
    """The routers of all mixtures of experts."""
    embeddings: Share
    """The input embedding, and with it a head that is tied to it."""
    head: Share
    norms: Share
    """Norms outside of the blocks, such as the final one."""
    other: Share
    """Everything else, such as a vision tower."""
    total: Share

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which something is trained."""
        return tuple(index for index, share in enumerate(self.blocks) if share.trainable)

    def __str__(self) -> str:
        rows: list[tuple[str, str]] = []
        start = 0
        for index, share in enumerate(self.blocks):
            following = self.blocks[index + 1] if index + 1 < len(self.blocks) else None
            if share.trainable or following is None or following.trainable:
                rows.append((name_layers(range(start, index + 1)), str(share)))
                start = index + 1
        rows += [(part, str(share)) for part in PARTS if (share := getattr(self, part)).total]
        width = max(len(row) for row, _ in rows)
        title = f"{self.name}: {self.total} parameters train"
        return "\n".join([title, *(f"  {row:{width}}  {text}" for row, text in rows)])


def freeze_report(model: nn.Module) -> FreezeReport:
    """Returns which parameters of a model require gradients: by block, and in embeddings, head, norms and routers.

    Args:
        model: A decoder of transformers, also inside PEFT, DDP or torch.compile.

    Raises:
        ModelError: The model is no decoder with one list of blocks.

    Example:
        print(autolayer.freeze_report(model))
    """
    from accelerate.utils import extract_model_from_parallel

    inner: Any = extract_model_from_parallel(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    blocks = find_layers(inner)
    left = {id(p): p for p in inner.parameters()}

    def take(modules: Iterable[nn.Module | None]) -> Share:
        """Counts the parameters of modules that nothing has counted before."""
        ids = {id(p) for module in modules if module is not None for p in module.parameters()}
        taken = [left.pop(key) for key in ids & left.keys()]
        return Share(trainable=count_parameters(p for p in taken if p.requires_grad), total=count_parameters(taken))

    total = [p for p in left.values() if p.requires_grad]
    return FreezeReport(
        name=type(inner).__name__,
        total=Share(trainable=count_parameters(total), total=count_parameters(left.values())),
        routers=take(router_modules(inner)),
        blocks=tuple(take([block]) for block in blocks),
        embeddings=take([inner.get_input_embeddings()]),
        head=take([inner.get_output_embeddings()]),
        norms=take(module for module in inner.modules() if "Norm" in type(module).__name__),
        other=take([inner]),
    )
