"""LayerBench's worlds of several turns, and how they are compared."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autolayer.reporting.contribution import Contribution
from autolayer.tasks.environment import act, begin

FOLDER = Path(__file__).parents[2] / "examples" / "layerbench"
sys.path.append(str(FOLDER))

import bases as layerbench_bases  # noqa: E402
import tasks as layerbench_tasks  # noqa: E402
from environments import ENVIRONMENTS  # noqa: E402
from stable import compare, differing, measured, pairs  # noqa: E402
from worlds import MAX_TURNS, RING, WORLDS, Journey, Walker, corpus, short_way  # noqa: E402


def oracle(walker: Walker) -> str:
    """Knows the journey: the shorter way to the shop, then to the goal."""
    journey = walker.journey
    wanted = journey.goal if walker.carrying else journey.shop
    assert wanted is not None
    return "R" if short_way(walker.place, wanted) == 1 else "L"


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_one_who_knows_the_way_always_arrives(name: str) -> None:
    task = layerbench_tasks.make(name)
    assert task.environment is Walker and task.max_turns == MAX_TURNS
    for row in task.splits["eval"][:300]:
        walker = Walker()
        begin(walker, row)
        rewards, done = [], False
        while not done:
            step = act(walker, oracle(walker))
            rewards.append(step.reward)
            done = step.done
        assert len(rewards) <= MAX_TURNS and rewards[-1] == 1.0 and not any(rewards[:-1])


@pytest.mark.parametrize("name", WORLDS)
def test_writers_arrive_now_and_then(name: str) -> None:
    """Else RL would have nothing to find; and not always, else it would have nothing to gain."""
    rng, arrived = random.Random(0), 0
    for _ in range(1000):
        parts, walker = corpus(WORLDS[name], rng), Walker()
        actions = [part.strip() for part in parts[1::2]]
        journey = parse(name, parts[0])
        walker.begin(journey)
        assert parts[0].startswith(journey.prompt + walker.view)
        done = False
        for read, action in zip((*parts[2::2], None), actions, strict=True):
            step = walker.step(action)
            assert read is None or read.startswith(step.observation), "what is read is what the world says"
            done = step.done
        arrived += done
    assert 150 < arrived < 700


def parse(name: str, text: str) -> Journey:
    """A journey from what a writer read first."""
    words, place = text.split(":")
    goal, start = ord(words[-1]) - ord("a"), ord(place[0]) - ord("a")
    if name == "errand":
        return Journey(start, goal, shop=ord(words[-2]) - ord("a"), words=words[:-2])
    return Journey(start, goal, words=words[:-1])


def test_the_goal_counts_only_after_the_shop() -> None:
    walker = Walker()
    assert walker.begin(Journey(0, 1, shop=2)) == "a"
    assert [tuple(walker.step(action)) for action in "RRL"] == [
        ("b", 0.0, False),
        ("c+", 0.0, False),
        ("b+", 1.0, True),
    ]
    assert walker.begin(Journey(0, RING - 1)) == "a"
    assert tuple(walker.step("go")) == ("a", 0.0, False) and tuple(walker.step("L")) == ("j", 1.0, True)


def test_only_actions_are_learned() -> None:
    tokenizer = layerbench_bases.build_tokenizer("\n")
    input_ids, labels = layerbench_bases.encode(tokenizer, [("1b:a\n> ", "R\n", "b\n> ", "L\n"), ("2a=", "c")])
    learned = [[tokenizer.decode([token]) for token in row if token != -100] for row in labels.tolist()]
    assert learned == [["R", "\n", "L", "\n", "<eos>"], ["c", "<eos>"]]
    assert tokenizer.decode(input_ids[0], skip_special_tokens=True) == "1b:a\n> R\nb\n> L\n"


def test_pairs_differ_in_one_thing_or_in_task_and_model() -> None:
    one = ENVIRONMENTS["symbols-llama.reading.grpo"]
    assert differing(one, replace(one, algorithm="dr_grpo")) == "algorithm"
    assert differing(one, replace(one, task="noisy")) == "task"
    assert differing(one, replace(one, base="exit-llama")) == "model"
    assert differing(one, replace(one, base="exit-llama", task="noisy", algorithm="gigpo")) == "task and model"
    assert differing(one, replace(one, task="noisy", algorithm="dr_grpo")) is None
    kinds = {pair.kind for pair in pairs(measured())}
    assert {"algorithm", "task", "model"} <= kinds and not any(
        ENVIRONMENTS[n].sealed for n in measured() if n in ENVIRONMENTS
    )


def test_curves_of_different_depth_are_compared_at_equal_depth() -> None:
    name = "symbols-llama.reading.grpo"
    environment, shallow = measured()[name]
    rows = [shallow.to_dict()["layers"][0]] * 11
    gains = list(np.repeat([list(arm.gains) for arm in shallow.layers.values()], 2, axis=0))[:11]
    # Every layer of the shallow one, and its mean with the next in between: on a line the same curve.
    known = np.array([arm.gains for arm in shallow.layers.values()])
    gains = [known[i // 2] if i % 2 == 0 else (known[i // 2] + known[i // 2 + 1]) / 2 for i in range(11)]
    layers = [
        {**row, "layer": layer, "gains": list(map(float, g))}
        for layer, (row, g) in enumerate(zip(rows, gains, strict=True))
    ]
    deep = Contribution.from_dict(
        {**shallow.to_dict(), "num_layers": 11, "layers": layers, "probes": {}, "reliability": {}}
    )
    pair = compare((environment, shallow), (replace(environment, base="exit-llama"), deep), "model")
    assert pair.spearman == pytest.approx(1) and pair.ceiling == pytest.approx((shallow.ceiling or 0) ** 2)
