"""Probes: cheap signals about every layer, the baselines that they have to beat, and the prediction made from them.

`PROBES` is the whole registry; base.py says how to add a probe. Files by what they hold:

* signals: gradient_norm, representation_change, sign_gain, self_imitation, cutoff, trusted_gain (with
  reach), the baselines
* what the signals share: context, shared_batch, gradient, step_response, policy_distance, exchange
* what comes of them: run_probes, probe_report, predictor (known), starting_rates
"""

from autolayer.probes.base import Probe
from autolayer.probes.baselines import DepthBaseline, Random
from autolayer.probes.cutoff import Cutoff
from autolayer.probes.gradient_norm import GradientNorm
from autolayer.probes.representation_change import RepresentationChange
from autolayer.probes.self_imitation import SelfImitation
from autolayer.probes.sign_gain import SignGain
from autolayer.probes.trusted_gain import Reach, TrustedGain

PROBES: dict[str, Probe] = {
    "gradient_norm": GradientNorm(),
    "representation_change": RepresentationChange(),
    "sign_gain": SignGain(),
    "self_imitation": SelfImitation(),
    "cutoff": Cutoff(),
    "reach": Reach(),
    "trusted_gain": TrustedGain(),
    "random": Random(),
    "first": DepthBaseline("first"),
    "middle": DepthBaseline("middle"),
    "last": DepthBaseline("last"),
    "position": DepthBaseline("position"),
}
