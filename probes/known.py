"""Environments of known contribution that the prediction learns from: LayerBench's (known.json) and the user's.

The user's own are every contribution.json below `--history DIR`. LayerBench's environments of the model at hand are
left out, so that a prediction is always about a base model that it has never seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from autolayer.core.errors import ConfigError
from autolayer.reporting.contribution import Contribution

FILE = Path(__file__).with_name("known.json")


@dataclass(frozen=True, kw_only=True)
class KnownEnvironment:
    """One environment (base, task, algorithm): its measured contributions and the probes' scores."""

    name: str
    base: str
    """Hash of the base model's weights."""
    architecture: str
    num_parameters: int
    num_layers: int
    layers: tuple[int, ...]
    contribution_L: tuple[float, ...]
    probings: tuple[Mapping[str, tuple[float, ...]], ...]
    """Each probe's scores of the layers, once for each seed the probes were run with."""


def packaged(*, without_base: str | None = None) -> list[KnownEnvironment]:
    """Returns LayerBench's environments, without those of one base."""
    stored = TypeAdapter(dict[str, list[KnownEnvironment]]).validate_json(FILE.read_bytes())
    return [known for known in stored["environments"] if known.base != without_base]


def history(folder: str | Path) -> list[KnownEnvironment]:
    """Reads every contribution.json in a folder and below it."""
    found = [of_contribution(Contribution.read(file), name=str(file)) for file in files(folder)]
    return [known for known in found if known.probings[0] and len(known.layers) > 1]


def files(folder: str | Path) -> list[Path]:
    """Returns the paths of the contribution.json files in a folder and below it, or refuses if there are none."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--history {folder} is no folder: give one that holds contribution.json files.")
    found = sorted(Path(folder).rglob("contribution.json"))
    if not found:
        raise ConfigError(f"--history {folder} holds no contribution.json: `autolayer measure` makes them.")
    return found


def of_contribution(measured: Contribution, *, name: str) -> KnownEnvironment:
    """Returns a measured environment with the probe scores of its own run."""
    own = {probe: tuple(scores) for probe, scores in measured.probes.items() if probe in measured.reliability}
    return KnownEnvironment(
        name=name,
        base=measured.base,
        architecture=measured.architecture,
        num_parameters=measured.num_parameters,
        num_layers=measured.num_layers,
        layers=tuple(measured.layers),
        contribution_L=tuple(measured.values.values()),
        probings=(own,),
    )
