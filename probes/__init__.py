"""One file per signal, the baselines, and the predictor.

`PROBES` is the whole registry: every entry is run, shown and held to one contract (tests/probes/test_probes.py).
"""

from __future__ import annotations

from autolayer.probes.base import Probe
from autolayer.probes.baselines import DepthBaseline, Random
from autolayer.probes.gain_per_kl import GainPerKL
from autolayer.probes.gradient_norm import GradientNorm
from autolayer.probes.line_search import LineSearch
from autolayer.probes.natural_gain import NaturalGain
from autolayer.probes.reach import Reach
from autolayer.probes.representation_change import RepresentationChange
from autolayer.probes.rl_burst import RLBurst
from autolayer.probes.trusted_gain import TrustedGain

PROBES: dict[str, Probe] = {
    "gradient_norm": GradientNorm(),
    "representation_change": RepresentationChange(),
    "gain_per_kl": GainPerKL(),
    "reach": Reach(),
    "trusted_gain": TrustedGain(),
    "natural_gain": NaturalGain(),
    "line_search": LineSearch(),
    "rl_burst": RLBurst(),
    "random": Random(),
    "first": DepthBaseline("first"),
    "middle": DepthBaseline("middle"),
    "last": DepthBaseline("last"),
    "position": DepthBaseline("position"),
}
