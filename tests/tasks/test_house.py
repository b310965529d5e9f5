"""agent:house: who can solve it, what it pays, and the text that small models learn it from."""

import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

from autolayer.core.config import Config
from autolayer.tasks import SPLITS, load_task
from autolayer.tasks.agent.actions import action_of, words_of
from autolayer.tasks.agent.house import (
    INVALID,
    MAX_TURNS,
    House,
    World,
    is_house_action,
    make_world,
    parse_house_action,
)
from autolayer.tasks.environment import act, begin

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from house_writers import CARELESS, WORDS, Explorer, house_episode, play  # noqa: E402

SEEDS = range(200)
HOME = World(
    furniture={"kitchen": "fridge", "hall": "table", "office": "drawer", "garden": "shelf"},
    objects={"fridge": (), "table": ("pen",), "drawer": ("cup",), "shelf": ()},
    start="hall",
    target="cup",
    goal="fridge",
)


def walk(house: House, *actions: str) -> list[tuple[str, float, bool]]:
    return [(step.observation, step.reward, step.done) for step in map(house.step, actions)]


def random_success(careless: float, seeds: range) -> float:
    rng = random.Random(0)
    return mean(play(House(make_world(seed)), rng, careless)[1] for seed in seeds)


def test_a_house_as_the_module_shows_it() -> None:
    assert HOME.prompt == (
        "put cup in fridge\nkitchen has fridge , hall has table , office has drawer , garden has shelf\n"
        "hall : table has pen"
    )
    actions = ("go garden", "go office", "open drawer", "take cup", "go kitchen", "open fridge", "put cup")
    assert walk(House(HOME), *actions) == [
        ("garden : shelf is empty", 0.0, False),
        ("office : drawer is closed", 0.0, False),
        ("office : drawer has cup", 0.0, False),
        ("office : drawer is empty , you have cup", 0.0, False),
        ("kitchen : fridge is closed , you have cup", 0.0, False),
        ("kitchen : fridge is empty , you have cup", 0.0, False),
        ("done", 1.0, True),
    ]


@pytest.mark.parametrize(
    "action",
    ["", "sing", "go", "go hall", "go bathroom", "go fridge", "open table", "open drawer", "take cup", "take table",
     "put pen", "put", "look look", "go kitchen now please", "take pen on pen on pen", "\x00", "go\u00a0"],
)  # fmt: skip
def test_what_cannot_be_done_costs_a_turn_and_nothing_else(action: str) -> None:
    house = House(HOME)
    before = house.view()
    assert act(house, action) == (INVALID, 0.0, False) and house.view() == before


def test_one_thing_at_a_time_and_nothing_through_a_lid() -> None:
    house = House(HOME)
    walk(house, "take pen", "go office", "open drawer")
    assert house.step("take cup").observation == INVALID
    assert house.step("put pen").observation == "office : drawer has cup and pen"
    walk(house, "take cup", "go kitchen")
    assert house.step("put cup").observation == INVALID, "the fridge is closed"
    assert house.step("look").observation == "kitchen : fridge is closed , you have cup"


def test_only_the_goal_pays() -> None:
    house = House(HOME)
    actions = ("go office", "open drawer", "take cup", "put cup", "take cup", "go kitchen", "open fridge", "put cup")
    rewards = [reward for _, reward, _ in walk(house, *actions)]
    assert rewards == [0.0] * 7 + [1.0]


def oracle(house: House) -> str:
    """Returns the next action on the shortest way to the goal, which takes 3 to 6 actions. It sees everything."""
    target, goal = house.world.target, house.world.goal
    if house.held not in (None, target):
        return f"open {house.here}" if house.here in house.closed else f"put {house.held}"
    if house.held == target:
        wanted, action = goal, f"put {target}"
    else:
        wanted, action = next(piece for piece, things in house.lying.items() if target in things), f"take {target}"
    if house.here != wanted:
        return f"go {next(room for room, piece in house.world.furniture.items() if piece == wanted)}"
    return f"open {wanted}" if wanted in house.closed else action


def test_the_oracle_solves_every_house_in_3_to_6_actions() -> None:
    lengths = []
    for seed in SEEDS:
        house, steps = House(), []
        assert begin(house, {"prompt": "", "seed": seed}) == ""
        while not (steps and steps[-1].done):
            steps.append(act(house, oracle(house)))
        assert sum(step.reward for step in steps) == 1.0
        lengths.append(len(steps))
    assert min(lengths) == 3 and max(lengths) == 6 < MAX_TURNS


def test_whoever_only_reads_solves_nearly_every_house_and_chance_none() -> None:
    assert random_success(0.0, SEEDS) > 0.95
    assert random_success(1.0, SEEDS) < 0.05


def test_the_writers_solve_somewhat_less_than_half() -> None:
    assert 0.4 < mean(random_success(careless, range(1000)) for careless in CARELESS) < 0.55


def test_the_same_seed_is_the_same_house() -> None:
    assert [make_world(seed) for seed in SEEDS] == [make_world(seed) for seed in SEEDS]
    assert make_world(7).prompt == (
        "put key on desk\n"
        "bedroom has desk , hall has fridge , office has shelf , bathroom has table , kitchen has bed\n"
        "bathroom : table has ball"
    ), "published numbers belong to these houses"


def test_no_target_is_already_where_it_belongs_and_one_place_holds_it() -> None:
    for world in map(make_world, SEEDS):
        places = [piece for piece, things in world.objects.items() if world.target in things]
        assert len(places) == 1 and places != [world.goal]


def test_the_prompt_hides_where_the_target_lies() -> None:
    hidden = [w for w in map(make_world, SEEDS) if w.target not in w.prompt.splitlines()[2]]
    assert len(hidden) > len(SEEDS) / 2


def test_different_ways_lead_to_the_same_state() -> None:
    """GiGPO compares actions taken in equal states: without repeats there is nothing to compare."""
    ways: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    rng = random.Random(0)
    for _ in range(16):
        house, actions = House(HOME), []
        explorer = Explorer(HOME.prompt)
        for _ in range(MAX_TURNS):
            actions.append(rng.choice(explorer.possible()))
            step = house.step(actions[-1])
            explorer.read(step.observation)
            ways[house.state].add(tuple(actions))
            if step.done:
                break
    assert sum(len(found) > 1 for found in ways.values()) > len(ways) / 4


def test_the_corpus_is_made_of_words_and_plays_by_the_rules() -> None:
    rng = random.Random(0)
    episodes = [house_episode(rng) for _ in range(300)]
    assert len(set(WORDS)) == len(WORDS) <= 60
    read = {word for turns in episodes for text, action in turns for word in f"{text} {action}".split()}
    assert read <= set(WORDS) and set(WORDS) - read <= {"done"}, "a tokenizer needs no other word"
    assert all(1 <= len(turns) <= MAX_TURNS for turns in episodes)
    assert all(is_house_action(action) for turns in episodes for _, action in turns)
    assert max(len(text.split()) for turns in episodes for text, _ in turns[1:]) <= 12
    assert any(text == INVALID for turns in episodes for text, _ in turns), "what it leads to must be known"
    assert house_episode(random.Random(5)) == house_episode(random.Random(5))


@pytest.mark.parametrize("chat", [False, True])
def test_house_is_a_task(chat: bool) -> None:
    task = load_task(Config(model="m", task="agent:house"), chat=chat)
    assert {split: len(task.splits[split]) for split in SPLITS} == {
        "train": 4096, "probe": 512, "select": 512, "eval": 1024,
    }  # fmt: skip
    assert task.is_chat == chat and task.max_turns == MAX_TURNS and task.reward is None
    plain = load_task(Config(model="m", task="agent:house"), chat=False)
    assert [row["seed"] for row in task.splits["eval"]] == [row["seed"] for row in plain.splits["eval"]]
    row = task.splits["eval"][0]
    assert task.environment is not None and begin(task.environment(), row) == ""
    text = row["prompt"][0]["content"] if chat else row["prompt"]
    assert text.endswith(make_world(row["seed"]).prompt)
    assert not chat or all(verb in text for verb in ("go ROOM", "open FURNITURE", "take OBJECT", "put OBJECT", "look"))


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("go kitchen", "go kitchen"),
        ("Go to the kitchen.\n", "go kitchen"),
        ("<think>\nopen fridge?\n</think>\n\ntake cup", "take cup"),
        ("I look there. <action>Open the Fridge</action>", "open fridge"),
        ("Thought: it is cold.\nAction: put cup in the fridge", "put cup in fridge"),
        ("Action: look\nIt may help.", "look"),
        ("> `look`<|im_end|>", "look"),
        ("", ""),
        ("</think>", ""),
    ],
)
def test_the_action_in_what_a_model_writes(text: str, action: str) -> None:
    assert " ".join(words_of(text)) == action


def test_actions_with_a_place_mean_the_same() -> None:
    assert parse_house_action("put cup in fridge") == parse_house_action("put cup") == ("put", "cup")
    assert (
        parse_house_action("take the cup from the shelf") == ("take", "cup")
        and parse_house_action("take cup yourself") is None
    )
    assert action_of("open  FRIDGE!") == "open fridge"
