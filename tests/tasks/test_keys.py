"""agent:keys: every maze can be solved, chance does not solve it, and what it pays."""

import random
from statistics import mean

import pytest

from autolayer.core.config import Config
from autolayer.tasks import SPLITS, load_task
from autolayer.tasks.agent.keys import (
    DOOR_REWARD,
    INVALID,
    LONGEST,
    MAX_TURNS,
    SHORTEST,
    WORDS,
    Keys,
    Maze,
    Position,
    is_keys_action,
    make_maze,
    parse_keys_action,
    solve,
)
from autolayer.tasks.environment import act, begin

SEEDS = range(200)
SMALL = Maze(
    doors={("a1", "a2"): None, ("a2", "a3"): "red", ("a2", "b2"): None},
    keys={"red": "b2"},
    start="a1",
    exit="a3",
)
WAY = ["go a2", "go b2", "take red", "go a2", "open red", "go a3"]


def test_a_maze_from_start_to_exit() -> None:
    assert SMALL.prompt == "go to a3\nways : a1 a2 , a2 a3 red door , a2 b2\nkeys : red in b2\na1 : ways a2"
    assert solve(SMALL, Position("a1")) == WAY
    keys = Keys(SMALL)
    assert [keys.step(action)[:3] for action in WAY] == [
        ("a2 : ways a1 b2 , red door", 0.0, False),
        ("b2 : ways a2 , red key", 0.0, False),
        ("b2 : ways a2 , you have red", 0.0, False),
        ("a2 : ways a1 b2 , red door , you have red", 0.0, False),
        ("a2 : ways a1 a3 b2 , you have red", 0.0, False),
        ("done", 1.0, True),
    ]


@pytest.mark.parametrize("action", ["", "go", "go b1", "go a1", "take red", "open red", "open a2", "fly", "go a2 a3"])
def test_what_cannot_be_done_costs_a_turn_and_nothing_else(action: str) -> None:
    keys = Keys(SMALL)
    before = keys.state
    assert act(keys, action) == (INVALID, 0.0, False) and keys.state == before


def test_the_best_player_solves_every_maze_and_chance_few() -> None:
    rng = random.Random(0)
    lucky = []
    for seed in SEEDS:
        keys = Keys()
        assert begin(keys, {"prompt": "", "seed": seed}) == ""
        way = solve(keys.maze, keys.at)
        assert way is not None and SHORTEST <= len(way) <= LONGEST < MAX_TURNS
        assert any(action.startswith("open") for action in way)
        steps = [act(keys, action) for action in way]
        assert [step.done for step in steps] == [False] * (len(way) - 1) + [True]
        assert sum(step.reward for step in steps) == 1.0
        keys = Keys(make_maze(seed))
        moves = (rng.choice([move for move, _ in keys.maze.moves(keys.at)]) for _ in range(MAX_TURNS))
        lucky.append(any(keys.step(move).done for move in moves))
    assert mean(lucky) < 0.15


def test_dense_rewards_add_up_to_one_and_pay_each_door_once() -> None:
    for seed in range(50):
        keys = Keys(make_maze(seed), dense=True)
        way = solve(keys.maze, keys.at) or []
        rewards = [keys.step(action).reward for action in way]
        assert sum(rewards) == pytest.approx(1.0)
        assert rewards[:-1].count(DOOR_REWARD) == sum(action.startswith("open") for action in way)
        assert rewards[-1] > 0


def test_the_same_seed_is_the_same_maze() -> None:
    assert make_maze(3) == make_maze(3) and make_maze("train/0").prompt == (
        "go to a3\n"
        "ways : a1 b1 , a2 b2 , a3 b3 , b1 b2 , b1 c1 blue door , b2 b3 green door , c1 c2 , c2 c3 red door\n"
        "keys : green in c1 , blue in a1 , red in a1\n"
        "b1 : ways a1 b2 , blue door"
    ), "published numbers belong to these mazes"


def test_a_state_says_which_doors_stand_open_elsewhere() -> None:
    """The same cell looks the same, but another action is best once the door is open."""
    there, back = Keys(SMALL), Keys(SMALL)
    states, again = (
        [keys.state for action in actions if keys.step(action)]
        for keys, actions in ((there, ("go a2", "go b2", "take red")), (back, (*WAY[:5], "go b2")))
    )
    assert states[2] in again[:3], "different ways, the same state"
    assert states[2] != again[5] and again[5] == "b2 : ways a2 , you have red | red"


def test_prompts_and_observations_are_made_of_words() -> None:
    assert len(set(WORDS)) == len(WORDS) <= 60
    rng = random.Random(0)
    texts = [INVALID, "done"]
    for seed in range(50):
        keys = Keys(make_maze(seed))
        texts.append(keys.maze.prompt)
        for _ in range(MAX_TURNS):
            action = rng.choice([move for move, _ in keys.maze.moves(keys.at)])
            assert is_keys_action(action)
            texts += [action, keys.step(action).observation]
    assert {word for text in texts for word in text.split()} == set(WORDS)


def test_actions_in_more_words() -> None:
    assert parse_keys_action("Take the red key.") == parse_keys_action("take red") == ("take", "red")
    assert parse_keys_action("open the blue door") == ("open", "blue") and parse_keys_action("go to b2") == ("go", "b2")
    assert (
        parse_keys_action("open red key") is None
        and parse_keys_action("go red") is None
        and parse_keys_action("take b2") is None
    )


@pytest.mark.parametrize("chat", [False, True])
def test_keys_is_a_task(chat: bool) -> None:
    task = load_task(Config(model="m", task="agent:keys"), chat=chat)
    assert {split: len(task.splits[split]) for split in SPLITS} == {
        "train": 2048,
        "probe": 256,
        "select": 256,
        "eval": 512,
    }
    assert task.is_chat == chat and task.max_turns == MAX_TURNS and task.environment is not None
    row = task.splits["eval"][0]
    assert begin(task.environment(), row) == ""
    text = row["prompt"][0]["content"] if chat else row["prompt"]
    assert text.endswith(make_maze("eval/0").prompt)
    assert not chat or all(action in text for action in ("go CELL", "take COLOUR", "open COLOUR"))
