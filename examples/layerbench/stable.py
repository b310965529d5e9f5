"""Is it the same layers for every task, algorithm and family? Rank correlations between measured contributions.

    python examples/layerbench/stable.py table                # seconds, from the stored results
    python examples/layerbench/stable.py measure              # first measures what is missing of GRID: hours
    python examples/layerbench/stable.py measure tiny.house   # of these those whose names begin so

arXiv 2607.01232 reports that which layers contribute hardly changes between tasks, algorithms and models of a family.
Here every pair of measured environments that differs in one of them has a Spearman correlation, beside its ceiling (the
product of both environments' ceilings: what two noisy measurements of the same thing could be expected to reach) and
the regret of training the other environment's best layer. Pairs that share neither base nor task show how much of it
is depth alone. Models of different depth are compared at the relative depths of the shallower one.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import ENVIRONMENTS, RATES, Environment
from rich.console import Console
from rich.table import Table
from run import RESULTS
from table import markdown, number

import autolayer
from autolayer.comparison.metrics import regret, spearman
from autolayer.models.names import EMBEDDED
from autolayer.reporting.contribution import Contribution

STORED = RESULTS / "stable"
FORMS: dict[str, dict[str, Any]] = {
    # Shorter than in LayerBench where a step costs more: an episode has a hundred tokens, a program is run.
    "math:arith": {"steps": 32},
    "code:expr": {"steps": 24, "prompts_per_step": 16, "num_eval": 512},
    "agent:house": {"steps": 16, "prompts_per_step": 8, "num_eval": 512},
}
GRID = [
    *(
        Environment(base=base, task=task, algorithm=algorithm, **FORMS[task])
        for base in EMBEDDED
        for task, algorithms in (
            ("math:arith", ("grpo", "dr_grpo")),
            ("code:expr", ("grpo", "dr_grpo")),
            ("agent:house", ("grpo", "gigpo")),
        )
        for algorithm in algorithms
    ),
    Environment(base="both-qwen2", task="errand", algorithm="grpo", steps=32, prompts_per_step=16),
    Environment(base="both-qwen2", task="trip", algorithm="gigpo", steps=32, prompts_per_step=16),
    Environment(base="symbols-llama", task="noisy", algorithm="dr_grpo", steps=16),
    Environment(base="symbols-qwen2", task="noisy", steps=16),
]
"""Both packaged models on every kind of task, and what completes some of LayerBench's bases; environments of LayerBench
among them are measured there."""
KINDS = ("algorithm", "task", "family", "model", "task and model")
"""How two environments differ. `family`: the packaged models, Qwen3 and Qwen2 by one recipe; of other models depth,
corpus and early exits differ as well."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two environments, compared."""

    names: tuple[str, str]
    kind: str
    """The difference, one of `KINDS`."""
    spearman: float | None
    ceiling: float | None
    regret: float
    """Contribution lost by training the layer that is best in the other environment, the mean of both directions."""
    random: float
    """The same for any layer."""


def measure(environment: Environment, work: Path) -> None:
    """Measures an environment as LayerBench does, but on two seeds."""
    torch.set_num_threads(1)
    rates, out = ",".join(map(str, RATES)), str(work / "stable" / environment.name)
    found = autolayer.measure(**environment.options(work / "bases"), rates=rates, num_seeds=2, out=out)
    STORED.mkdir(exist_ok=True)
    values = found.to_dict() | {"model": environment.base, "task": environment.task}
    (STORED / f"{environment.name}.json").write_text(json.dumps({"contribution": values}, indent=1) + "\n")
    print(f"{environment.name}: full {found.full.value:+.3f}, best {found.best_layers}", flush=True)


def measured() -> dict[str, tuple[Environment, Contribution]]:
    """Returns every measured environment that is not sealed, with its contribution."""
    every = {e.name: e for e in (*GRID, *ENVIRONMENTS.values()) if not e.sealed}  # LayerBench's settings last
    found = {}
    for name, environment in every.items():
        path = next((path for folder in (RESULTS, STORED) if (path := folder / f"{name}.json").is_file()), None)
        if path is not None:
            found[name] = (environment, Contribution.from_dict(json.loads(path.read_text())["contribution"]))
    return found


def pairs(found: dict[str, tuple[Environment, Contribution]]) -> Iterator[Pair]:
    """Yields a comparison for every two environments that differ in one thing."""
    for one, other in combinations(found.values(), 2):
        if kind := differing(one[0], other[0]):
            yield compare(one, other, kind)


def differing(one: Environment, other: Environment) -> str | None:
    """Returns what differs between two environments, or None if the pair is of no interest."""
    task, base = one.task != other.task, one.base != other.base
    if task and base:
        return "task and model"
    if one.algorithm != other.algorithm:
        return None if task or base else "algorithm"
    if task:
        return "task"
    return "family" if {one.base, other.base} == set(EMBEDDED) else "model"


def compare(one: tuple[Environment, Contribution], other: tuple[Environment, Contribution], kind: str) -> Pair:
    shallow, deep = sorted((one, other), key=lambda each: each[1].num_layers)
    depth_L = relative_depth(shallow[1])
    theirs_S_L = by_seed(shallow[1])
    mine_S_L = np.array([np.interp(depth_L, relative_depth(deep[1]), deep_L) for deep_L in by_seed(deep[1])])
    even_L = np.zeros(len(depth_L))
    ceilings = [each[1].ceiling for each in (one, other) if each[1].ceiling is not None]
    return Pair(
        names=(one[0].name, other[0].name),
        kind=kind,
        spearman=spearman(mine_S_L.mean(0), theirs_S_L.mean(0)),
        ceiling=ceilings[0] * ceilings[1] if len(ceilings) == 2 else None,
        regret=(regret(mine_S_L.mean(0), theirs_S_L) + regret(theirs_S_L.mean(0), mine_S_L)) / 2,
        random=(regret(even_L, theirs_S_L) + regret(even_L, mine_S_L)) / 2,
    )


def by_seed(measured: Contribution) -> np.ndarray:
    """Contributions, (seeds, layers)."""
    return np.array(list(measured.by_seed().values())).T


def relative_depth(measured: Contribution) -> np.ndarray:
    """0 for the first layer and 1 for the last, of those measured."""
    return np.array(list(measured.layers)) / (measured.num_layers - 1)


def every_pair(found: list[Pair]) -> Table:
    """Pairs that differ in one thing."""
    table = markdown(None, ("differs", "one", "other", "Spearman", "ceiling", "regret"))
    for pair in sorted(found, key=lambda pair: KINDS.index(pair.kind)):
        table.add_row(pair.kind, *pair.names, *map(number, (pair.spearman, pair.ceiling, pair.regret)))
    return table


def means(found: list[Pair]) -> Table:
    heads = ("differs", "pairs", "Spearman", "least", "most", "of ceiling", "regret", "regret of a random layer")
    table = markdown(None, heads)
    by_kind = defaultdict(list)
    for pair in found:
        by_kind[pair.kind].append(pair)
    for kind in KINDS:
        if some := by_kind[kind]:
            values = [pair.spearman or 0.0 for pair in some]
            shares = [(pair.spearman or 0.0) / pair.ceiling for pair in some if pair.ceiling]
            table.add_row(
                kind, str(len(some)),
                *map(number, (_mean(values), min(values), max(values), _mean(shares))),
                *map(number, (_mean(pair.regret for pair in some), _mean(pair.random for pair in some))),
            )  # fmt: skip
    return table


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["measure", "table"])
    parser.add_argument("only", nargs="?", default="", metavar="BASE.TASK.ALGORITHM")
    parser.add_argument("--work", type=Path, default=Path("runs/layerbench"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.step == "measure":
        have = measured()
        missing = [e for e in GRID if e.name.startswith(options.only) and e.name not in (*have, *ENVIRONMENTS)]
        with ProcessPoolExecutor(options.processes) as pool:
            for done in [pool.submit(measure, environment, options.work) for environment in missing]:
                done.result()
        return
    found = list(pairs(measured()))
    console = Console(width=160)
    console.print(every_pair([pair for pair in found if pair.kind != KINDS[-1]]))
    console.print(means(found))


if __name__ == "__main__":
    main()
