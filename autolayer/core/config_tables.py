"""The tables of a --config file: settings that few runs change, grouped by the part of the run that reads them."""

from typing import Annotated, Any, ClassVar

import annotated_types
from pydantic import BeforeValidator

from autolayer.core.errors import ConfigError
from autolayer.core.settings import AtMost, LearningRate, NonNegative, OpenShare, Settings, Share, Size


def _rates(value: Any) -> tuple[float, ...] | None:
    if value is None or value == "auto":
        return None
    try:
        rates = sorted({float(rate) for rate in (value.split(",") if isinstance(value, str) else value)})
    except (TypeError, ValueError, OverflowError):
        rates = []
    if rates and 0 < rates[0] <= rates[-1] < float("inf"):
        return tuple(rates)
    raise ConfigError(f"--rates {value!r} cannot be read: give numbers above 0, such as 1e-4,3e-4,1e-3, or auto.")


class ProbeConfig(Settings):
    """Settings of the probes."""

    table: ClassVar[str | None] = "probe"

    share: Share | None = None
    """Share of the finding budget that the probes may spend when a race follows; without one they may spend all.
    Default: .5, and .3 for models of less than 100 million parameters."""
    num_folds: Annotated[int, annotated_types.Ge(2), AtMost] = 3
    """Number of folds of the shared batch: a direction is computed on all folds but one and evaluated on that one."""
    num_prompts: Size = 64
    """Largest number of prompts in each fold; a small budget takes fewer."""


class SearchConfig(Settings):
    """Settings of the search, which confirms the prediction by short runs."""

    table: ClassVar[str | None] = "search"

    num_select: Size = 256
    """Items of the `select` split on which every rung compares its arms."""
    rate_span: Annotated[float, annotated_types.Ge(1)] = 4.0
    """A layer's learning rate is searched between the starting rate divided and multiplied by this."""
    confidence: OpenShare = 0.95
    """The leader is clear when it is best with at least this probability."""


class MeasureConfig(Settings):
    """Settings of `measure`, which finds the contribution of every layer."""

    table: ClassVar[str | None] = None  # both are options of `measure`

    num_seeds: Annotated[Size, annotated_types.Le(1000)] = 3
    """Training seeds of every arm: the run's seed and the ones after it."""
    rates: Annotated[tuple[LearningRate, ...] | None, BeforeValidator(_rates)] = None
    """Learning rates that every arm is tried at, such as 1e-4,3e-4,1e-3. Default: a grid made from the probes."""


class GiGPOConfig(Settings):
    """Settings of GiGPO (arXiv 2505.10978), which weighs the steps of an episode."""

    table: ClassVar[str | None] = "gigpo"

    omega: Annotated[NonNegative, annotated_types.Le(1e3)] = 1.0
    """Weight of the advantages among equal states, relative to those among episodes."""
    gamma: Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)] = 0.95
    """Discount of a later step's reward."""


class VLLMConfig(Settings):
    """Settings of a vLLM engine that shares the device with training."""

    table: ClassVar[str | None] = "vllm"

    memory_share: OpenShare = 0.5
    """Share of the device's memory for a second copy of the weights and the cache of many sequences."""
    sleep: bool = False
    """Free all of that memory while the policy trains (CUDA only; the weights are kept in host memory)."""
