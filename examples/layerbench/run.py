"""Runs LayerBench: builds bases, measures every layer, asks the tool, and keeps what came out in results/.

    python examples/layerbench/run.py all gap-qwen3.gap.grpo     # one environment, start to end: 15 to 40 minutes
    python examples/layerbench/run.py all                        # every one that is not sealed, two at a time: hours
    python examples/layerbench/run.py fit                        # what the prediction learns from, made from results/

Steps, each of which can be asked for alone and takes up what is there: build, measure, probe, pick, lora.
The prediction that `pick` uses never learns from the base it is asked about (probes/known.py), so an environment that
stands in known.json is judged as if it did not.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bases import BASES, pretrain
from environments import ENVIRONMENTS, HERE, RATES, Environment
from lora import gains

import autolayer
from autolayer.core.config import Config
from autolayer.core.run_folder import PROBE
from autolayer.models.loading import load_model
from autolayer.probes.known import FILE, KnownEnvironment, of_contribution, packaged
from autolayer.reporting.contribution import Contribution

RESULTS = HERE / "results"
SEEDS = (10, 11, 12)
"""Seeds of probes and picks. None that an arm was measured with: those would share prompts and noise with the truth."""
BUDGETS = (0.25, 1.0)
"""Shares of one full run that finding may cost."""
DEFAULT_BUDGET = 0.25
"""At this one `pick` also trains: what its own learning rate gains is not what the best measured one would."""


def build(environment: Environment, work: Path) -> None:
    folder = work / "bases" / environment.base
    if environment.base in BASES and not (folder / "config.json").is_file():
        print(f"{environment.base}: loss {pretrain(BASES[environment.base], folder):.3f}", flush=True)


def measure(environment: Environment, work: Path) -> None:
    out = str(work / "measure" / environment.name)
    found = autolayer.measure(**environment.options(work / "bases"), rates=",".join(map(str, RATES)), out=out)
    values = found.to_dict() | {"model": environment.base, "task": environment.task}
    keep(environment, contribution=values)
    print(f"{environment.name}: full {found.full.value:+.3f}, best {found.best_layers}", flush=True)


def probe(environment: Environment, work: Path) -> None:
    """Stores the probes' scores at the default budget, once for each seed."""
    check(environment, work)
    probings = []
    for seed in SEEDS:
        out = work / "probe" / f"{environment.name}.{seed}"
        autolayer.pick(Config(**environment.options(work / "bases", seed), out=out), until="probe")
        report = json.loads((out / PROBE).read_text())
        probings.append({"scores": report["scores"], "reliability": report["reliability"]})
    keep(environment, probings=probings)


def pick(environment: Environment, work: Path) -> None:
    """Stores what the tool finds, and the gain of the final training at the default budget."""
    check(environment, work)
    runs = []
    for budget in BUDGETS:
        for seed in SEEDS:
            out = work / "pick" / f"{environment.name}.{budget:g}.{seed}"
            options = {**environment.options(work / "bases", seed), "budget": budget, "out": str(out)}
            result = autolayer.pick(Config(**options), until=None if budget == DEFAULT_BUDGET else "search")
            ranking = [
                {name: getattr(row, name) for name in ("layer", "predicted", "predicted_low", "predicted_high",
                                                       "measured", "measured_steps", "probability_best")}
                for row in result.ranking or ()
            ]  # fmt: skip
            runs.append({
                "budget": budget, "seed": seed, "best_layers": result.best_layers, "verdict": result.verdict,
                "tied_layers": result.tied_layers, "expected_regret": result.expected_regret,
                "cost_share": result.cost_share_of_full_run, "ranking": ranking, "probes": result.probes,
                "learning_rate": result.learning_rate, "gain": result.gain.value if result.gain else None,
            })  # fmt: skip
    keep(environment, picks=runs)


def check(environment: Environment, work: Path) -> None:
    """Stops where a base has other weights than were measured, and where the prediction has learned from its twin.

    Another machine may build a base with other last digits, and then it is not the one that known.json leaves out.
    """
    stored, built = load(environment), load_model(environment.model(work / "bases")).weight_hash
    if stored is None or stored["contribution"]["base"] != built:
        sys.exit(f"{environment.name} was measured on other weights than {environment.base} has: run `measure` again")
    same = [name for name, other in ENVIRONMENTS.items() if other.base == environment.base]
    if twins := [known.name for known in packaged(without_base=built) if known.name in same]:
        sys.exit(
            f"{environment.base} was built anew, and the prediction has learned from {', '.join(twins)}, which is the "
            "same base: run `measure` for those again, and then `fit`"
        )


def lora(environment: Environment, work: Path) -> None:
    keep(environment, lora=gains(environment, work / "bases"))


def keep(environment: Environment, **values: Any) -> None:
    """Adds to an environment's file in results/."""
    path = RESULTS / f"{environment.name}.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    if "contribution" in values and before.get("steps") != environment.steps:
        before = {}  # what was found for runs of another length
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**before, "steps": environment.steps, **values}, indent=1) + "\n")


def load(environment: Environment) -> dict[str, Any] | None:
    path = RESULTS / f"{environment.name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def known(environment: Environment) -> KnownEnvironment:
    """An environment as the prediction learns from it."""
    found = load(environment)
    assert found is not None, f"{environment.name} has not been measured"
    probings = [
        {name: tuple(scores) for name, scores in probing["scores"].items() if name in probing["reliability"]}
        for probing in found.get("probings", ())
    ]  # fmt: skip
    made = of_contribution(Contribution.from_dict(found["contribution"]), name=environment.name)
    return replace(made, probings=tuple(probings))  # one size of probes for all, not what measuring happened to use


def fit() -> None:
    """Writes probes/known.json from every measured environment that is not sealed."""
    measured = [e for e in ENVIRONMENTS.values() if not e.sealed and load(e) is not None]
    text = json.dumps({"environments": [short(asdict(known(environment))) for environment in measured]}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"known.json: {len(measured)} environments, {len({e.base for e in measured})} bases")


def short(value: Any) -> Any:
    """Rounds the numbers of a record to five digits."""
    if isinstance(value, dict):
        return {name: short(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [short(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


STEPS = {"build": build, "measure": measure, "probe": probe, "pick": pick, "lora": lora}


def run(name: str, steps: Sequence[str], work: Path) -> None:
    torch.set_num_threads(1)
    for step in steps:
        STEPS[step](ENVIRONMENTS[name], work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=[*STEPS, "all", "fit"])
    parser.add_argument("names", nargs="*", metavar="ENVIRONMENT", help="default: all that are not sealed")
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"), help="bases and run folders")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_intermixed_args()
    if unknown := [name for name in options.names if name not in ENVIRONMENTS]:
        sys.exit(f"unknown environment {', '.join(unknown)}; known: {', '.join(ENVIRONMENTS)}")
    if options.step == "fit":
        return fit()
    names = options.names or [name for name, environment in ENVIRONMENTS.items() if not environment.sealed]
    steps = list(STEPS) if options.step == "all" else [options.step]
    if "build" in steps:  # first, since two environments may share a base
        for base in dict.fromkeys(ENVIRONMENTS[name].base for name in names):
            build(next(e for e in ENVIRONMENTS.values() if e.base == base), options.work)
    with ProcessPoolExecutor(options.processes) as pool:
        for done in [pool.submit(run, name, steps, options.work) for name in names]:
            done.result()


if __name__ == "__main__":
    main()
