"""Measures how much faster a search is with more workers, beside what the dependence of its rungs allows.

    python examples/benchmarks/workers.py          # 2 minutes

A race of 16 layers whose short runs take no computing but a time: half a second a step, as if each worker had a machine
of its own. A batch of runs waits for all of the one before, so the floor is the sum over batches of the longest share
that a worker has.
"""

import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.search.race import Race
from autolayer.search.records import Candidate, RaceConfig, RaceOutcome
from autolayer.search.worker import run_search

SECONDS = 0.5
"""Duration of an optimizer step."""
WORKERS = (1, 2, 4)
CANDIDATES = [Candidate(layers=(layer,), predicted=0.6, predicted_sd=0.2, learning_rate=1e-4) for layer in range(16)]
CONFIG = RaceConfig(
    seed=0, num_layers=16, total_steps=60, budget=Cost(generated_tokens=110.0, layer_tokens=110.0),
    step_cost=lambda layers: Cost(generated_tokens=1.0, layer_tokens=1.0), eval_cost=Cost(), regret=0.0,
    rate_span=1.0,
)  # fmt: skip
BASE_I = tuple(np.random.default_rng(0).normal(0.4, 0.3, 64))


def run(arm: Arm, to_step: int, seconds: float = SECONDS) -> RungResult:
    """Sleeps for as long as the steps take. An evaluation takes no time here."""
    steps = to_step - arm.step
    time.sleep(seconds * steps)
    assert arm.layers != "full"
    layer = arm.layers[0]
    rng = np.random.default_rng([layer, arm.seed, to_step])
    gain = 0.2 * (0.5 + layer / 32) * to_step / CONFIG.total_steps
    return RungResult(
        arm=replace(arm, step=to_step, checkpoint=f"arms/{arm.key}"),
        select_rewards_I=tuple(np.add(BASE_I, gain + rng.normal(0, 0.3, len(BASE_I)))),
        train_rewards_P=tuple(gain + rng.normal(0, 0.2, 8 * steps)),
        cost=Cost(generated_tokens=float(steps), layer_tokens=float(steps)),
    )


def work(folder: str, start: float) -> None:
    time.sleep(max(0.0, start - time.time()))  # all begin at once, with everything imported
    outcome = run_search(CONFIG, CANDIDATES, BASE_I, run, storage=f"sqlite:///{folder}/study.db")
    print(time.time() - start, outcome.best)


def batches() -> list[list[int]]:
    """The steps of every run that the race asks for, batch by batch."""
    race, answers, found = Race(CONFIG, CANDIDATES, BASE_I), {}, []
    while not isinstance(due := race.due(answers), RaceOutcome):
        found.append([each.to_step - each.from_step for each in due])
        for each in due:
            before = [a.arm for r, a in answers.items() if r.slot == each.slot]
            fresh = Arm(layers=each.slot.layers, learning_rate=1e-4, seed=each.slot.seed)
            answers[each] = run(max(before, key=lambda arm: arm.step, default=fresh), each.to_step, seconds=0.0)
    return found


def floor(num: int) -> float:
    """Seconds that the batches take at the least: the work divided, and no less than the longest run."""
    return SECONDS * sum(
        max(max(steps), sum(steps) / num, min(steps) * math.ceil(len(steps) / num)) for steps in batches()
    )


def main() -> None:
    if len(sys.argv) == 3:
        return work(sys.argv[1], float(sys.argv[2]))
    table, alone = Table(box=MARKDOWN), 0.0
    for name in ("workers", "seconds", "floor", "seconds / floor", "faster than one", "winner"):
        table.add_column(name)
    for num in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.time() + 8 + 2 * num
            command = [sys.executable, __file__, folder, str(start)]
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num)]
            said = [process.communicate()[0].split(maxsplit=1) for process in running]
        seconds = max(float(words[0]) for words in said)
        alone = alone or seconds
        winners = {words[1].strip() for words in said}
        table.add_row(
            str(num), f"{seconds:.1f}", f"{floor(num):.1f}", f"{seconds / floor(num):.2f}", f"{alone / seconds:.2f}",
            " or ".join(sorted(winners)),
        )  # fmt: skip
    Console(width=120).print(table)
    print("steps of the runs, batch by batch:", batches())


if __name__ == "__main__":
    main()
