"""How much it saves to stop the evaluation of arms that have clearly lost, and what it costs. A simulation, no model.

    python examples/benchmarks/looks.py --studies 300      # 4 minutes of one core

The worlds and their learning curves are those of race_simulation.py, with its good prior: 128 items of `select`, an
evaluation at the price of half a training step, as `pick` plans it. In the second kind of world one layer in five is
ruined by its first steps and gets nothing right any more, as with a learning rate that is far too high; the prediction
has not seen it coming.

What would be stopped, and whether it would have gone up a rung, is read off races that evaluate everything. Then the
same races are run with stopping: do they choose another layer, and is it a worse one?
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import numpy as np
from race_simulation import NUM_SELECT, RATE, World
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from autolayer.core.arms import Arm, RungResult
from autolayer.core.costs import Cost
from autolayer.search.looks import next_look
from autolayer.search.race import Racing
from autolayer.search.rates import learning_rate
from autolayer.search.records import Outcome, Run

EVALUATION = Cost(generated_tokens=0.5, layer_tokens=0.15)
"""Of all items, in training steps: half as many completions, and no backward pass."""
RUINED = 0.2
"""Share of the layers."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One race."""

    regret: float
    best: tuple[int, ...]
    spent: float
    """In training steps' generated tokens."""
    evaluations: int
    stopped: int
    items: int
    """That were not looked at, or need not have been."""
    advanced: int
    """Runs that went up a rung."""
    stopped_advanced: int
    """Those of them that were to be stopped: the race may take a lost arm further where it has too few others."""
    stopped_sound: int
    """Of the stopped, those whose layer is not ruined."""
    sound_advanced: int
    """Those of them that went up a rung: wrongly stopped by any standard."""


def ruined_layers(world: World) -> list[int]:
    chance_L = np.random.default_rng([world.seed, 7]).random(len(world.contribution_L))
    return np.flatnonzero(chance_L < RUINED).tolist()


def run(world: World, arm: Arm, to_step: int, ruined: list[int]) -> RungResult:
    """With the whole evaluation."""
    result = world.run(arm, arm.step, to_step)
    if int(arm.layers[0]) not in ruined:
        return result
    nothing = tuple(0.0 for _ in result.train_rewards_P)
    return replace(result, select_rewards_I=(0.0,) * NUM_SELECT, train_rewards_P=nothing)


def play(world: World, ruined: list[int], seed: int, stopping: bool) -> Played:
    config, candidates = replace(world.config(seed), eval_cost=EVALUATION), world.candidates("good")
    of_layers = {candidate.layers: candidate for candidate in candidates}
    racing = Racing(config, candidates, tuple(world.base_select))
    answers: dict[Run, RungResult] = {}
    lost: set[Run] = set()
    items = 0
    advanced: list[Run] = []
    while not isinstance(due := racing.due(answers), Outcome):
        for each in due:
            advanced += [other for other in answers if other.slot == each.slot and other.to_step == each.from_step]
            rate = learning_rate(config, of_layers[each.slot.layers], each, answers)
            arm = Arm(layers=each.slot.layers, learning_rate=rate, seed=each.slot.seed, step=each.from_step)
            result, rival_I, seen = run(world, arm, each.to_step, ruined), racing.rival(each, answers), 0
            while (end := next_look(result.select_rewards_I[:seen], rival_I)) > seen:
                seen = end
            if seen < NUM_SELECT:
                lost.add(each)
                items += NUM_SELECT - seen
            share = seen / NUM_SELECT if stopping else 1.0
            steps = float(each.to_step - each.from_step)
            answers[each] = replace(
                result,
                select_rewards_I=result.select_rewards_I[: seen if stopping else NUM_SELECT],
                cost=Cost(generated_tokens=steps, layer_tokens=steps) + EVALUATION * share,
            )
    sound = {each for each in lost if each.slot.layers[0] not in ruined}
    value = 0.0 if due.best[0] in ruined else world.value(due.best[0], math.log(due.winner.learning_rate / RATE))
    return Played(
        regret=float(np.delete(world.contribution_L, ruined).max()) - value,
        best=due.best,
        spent=due.spent.generated_tokens,
        evaluations=len(answers),
        stopped=len(lost),
        items=items,
        advanced=len(advanced),
        stopped_advanced=len(lost.intersection(advanced)),
        stopped_sound=len(sound),
        sound_advanced=len(sound.intersection(advanced)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300, help="simulated models and tasks")
    arguments = parser.parse_args()
    table = Table(
        "worlds", "evaluations", "stopped", "items saved", "of all tokens", "stopped, but went up", "of sound layers",
        "other layer", "regret, stopping minus not", box=MARKDOWN,
    )  # fmt: skip
    for name, ruins in (("as they are", False), ("one layer in five ruined", True)):
        worlds = [World.draw(number) for number in range(arguments.studies)]
        ruined = [ruined_layers(world) if ruins else [] for world in worlds]
        whole, cut = (
            [play(world, ruined[number], number, stopping) for number, world in enumerate(worlds)]
            for stopping in (False, True)
        )
        evaluations, stopped = sum(each.evaluations for each in whole), sum(each.stopped for each in whole)
        saved = sum(each.items for each in whole) / NUM_SELECT
        sums = {
            name: sum(getattr(each, name) for each in whole)
            for name in ("advanced", "stopped_advanced", "stopped_sound", "sound_advanced")
        }
        worse = np.array([one.regret - other.regret for one, other in zip(cut, whole, strict=True)])
        table.add_row(
            name, str(evaluations), f"{stopped / evaluations:.1%}", f"{saved / evaluations:.1%}",
            f"{EVALUATION.generated_tokens * saved / sum(each.spent for each in whole):.2%}",
            f"{sums['stopped_advanced']} of {stopped} ({sums['advanced']} went up)",
            f"{sums['sound_advanced']} of {sums['stopped_sound']}",
            f"{np.mean([one.best != other.best for one, other in zip(cut, whole, strict=True)]):.1%}",
            f"{worse.mean():+.4f} ± {worse.std() / math.sqrt(len(worse)):.4f}",
        )  # fmt: skip
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
