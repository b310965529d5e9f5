"""The record of probe.json: what every probe scored, and the prediction made from it."""

from dataclasses import dataclass

from autolayer.core.errors import ConfigError
from autolayer.probes.predictor import Prediction
from autolayer.probes.starting_rates import combined_rate


@dataclass(frozen=True, kw_only=True)
class ProbeReport(Prediction):
    """The probes' scores and the prediction; every tuple over layers is in the order of `layers`."""

    layers: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    """Probe name -> score per candidate; probes that the plan left out are missing."""
    reliability: dict[str, float]
    """Probe name -> share of its variance over layers that is not noise."""
    learning_rates: tuple[float | None, ...]
    """Starting learning rate of each candidate; None for a layer that moves nothing."""
    notes: tuple[str, ...] = ()


def joint_rate(report: ProbeReport) -> float:
    """Returns the learning rate of training all probed layers together."""
    rates = [rate for rate in report.learning_rates if rate is not None]
    if not rates:
        raise ConfigError(f"layers {list(report.layers)} do not move the policy at all; give other --layers.")
    return combined_rate(rates)
