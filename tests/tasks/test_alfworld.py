"""agent:alfworld, with the real engine where it is installed and with a stand-in for it everywhere.

Both play the same game, written here in ALFWorld's own format, and must give the same transcript.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from alfworld_helpers import install_fake, make_data

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError
from autolayer.tasks import SPLITS, load_task
from autolayer.tasks.agent.alfworld import PENALTY, AlfredGame, find_games
from autolayer.tasks.environment import act, begin

PROBLEM = """
(define (problem plan) (:domain alfred)
(:objects agent1 - agent Mug_bar_1 - object Desk_bar_1 - receptacle Drawer_bar_1 - receptacle MugType - otype
 DeskType - rtype DrawerType - rtype loc_bar_0 - location loc_bar_1 - location loc_bar_2 - location)
(:init (= (total-cost) 0) (receptacleType Desk_bar_1 DeskType) (receptacleType Drawer_bar_1 DrawerType)
 (objectType Mug_bar_1 MugType) (canContain DeskType MugType) (canContain DrawerType MugType)
 (openable Drawer_bar_1) (pickupable Mug_bar_1) (inReceptacle Mug_bar_1 Drawer_bar_1)
 (wasInReceptacle Mug_bar_1 Drawer_bar_1) (objectAtLocation Mug_bar_1 loc_bar_1)
 (receptacleAtLocation Drawer_bar_1 loc_bar_1) (receptacleAtLocation Desk_bar_1 loc_bar_2)
 (atLocation agent1 loc_bar_0))
(:goal (and (exists (?r - receptacle) (exists (?o - object)
 (and (inReceptacle ?o ?r) (objectType ?o MugType) (receptacleType ?r DeskType)))))))
"""


@pytest.fixture(params=["fake", "real"])
def game(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a trial, for an engine that can play it."""
    file = tmp_path / "game.tw-pddl"
    if request.param == "real":
        if importlib.util.find_spec("alfworld") is None and "AUTOLAYER_ENGINES" not in os.environ:
            pytest.skip("alfworld is not installed: make test-agents")
        from alfworld import info  # pyright: ignore[reportMissingImports]

        grammar = Path(info.ALFRED_TWL2_PATH).read_text().replace("UNKNOWN GOAL", "put a mug in desk")
        domain = Path(info.ALFRED_PDDL_PATH).read_text()
        file.write_text(json.dumps({"pddl_domain": domain, "grammar": grammar, "pddl_problem": PROBLEM}))
    else:
        file.write_text("{}")
        install_fake(monkeypatch)
    return str(file)


def test_an_episode(game: str) -> None:
    episode = AlfredGame()
    assert begin(episode, {"prompt": "", "game": game}) == (
        "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a drawer 1.\n\n"
        "Your task is to: put a mug in desk.\nAdmissible actions: go to desk 1, go to drawer 1, inventory, look."
    )
    actions = (
        "go to drawer 1",
        "<think>It is closed.</think><action>Open drawer 1</action>",
        "take mug 1 from drawer 1",
        "go to desk 1",
        "move mug 1 to desk 1",
    )
    steps = [act(episode, action) for action in actions]
    assert [step.reward for step in steps] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert [step.done for step in steps] == [False, False, False, False, True]
    assert steps[1].observation == (
        "You open the drawer 1. The drawer 1 is open. In it, you see a mug 1.\nAdmissible actions: close drawer 1, "
        "examine drawer 1, go to desk 1, inventory, look, take mug 1 from drawer 1."
    )


@pytest.mark.parametrize("action", ["fly", "", "open fridge 1", "take mug 1 from drawer 1", "go to"])
def test_what_is_not_admissible_costs_the_penalty(game: str, action: str) -> None:
    episode = AlfredGame()
    first = begin(episode, {"prompt": "", "game": game})
    step = act(episode, action)
    assert (step.reward, step.done) == (-PENALTY, False) and step.observation.startswith("Nothing happens.")
    assert step.observation.splitlines()[-1] == first.splitlines()[-1]


# The data.


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    install_fake(monkeypatch)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    monkeypatch.delenv("ALFWORLD_EVAL", raising=False)
    return Config(model="m", task="agent:alfworld")


@pytest.mark.parametrize("chat", [False, True])
def test_alfworld_is_a_task(config: Config, tmp_path: Path, chat: bool) -> None:
    make_data(tmp_path)
    task = load_task(config, chat=chat)
    assert sum(len(task.splits[split]) for split in SPLITS[:3]) == 59, "the unsolvable one is left out"
    assert len(task.splits["train"]) > 35 and all("valid_seen" in row["game"] for row in task.splits["eval"])
    assert (task.max_turns, task.is_chat, len(task.splits["eval"])) == (50, chat, 2)
    assert task.environment is not None and begin(task.environment(), task.splits["eval"][0])


def test_the_split_of_a_game_does_not_depend_on_where_it_is(config: Config, tmp_path: Path) -> None:
    games = {}
    for name in ("one", "two"):
        make_data(tmp_path / name)
        games[name] = [path.parent.name for path in find_games(tmp_path / name / "json_2.1.1" / "train")]
    assert games["one"] == games["two"]


def test_unseen_rooms_can_be_the_evaluation(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(tmp_path)
    monkeypatch.setenv("ALFWORLD_EVAL", "valid_unseen")
    assert "valid_unseen" in load_task(config, chat=False).splits["eval"][0]["game"]
    monkeypatch.setenv("ALFWORLD_EVAL", "valid_nowhere")
    with pytest.raises(DataError, match="no solvable game of ALFWorld below .*valid_nowhere"):
        load_task(config, chat=False)


def test_other_kinds_of_task_are_left_out(config: Config, tmp_path: Path) -> None:
    make_data(tmp_path, task_type="make_coffee")
    with pytest.raises(DataError, match="no solvable game"):
        load_task(config, chat=False)


def test_damaged_data_are_named(config: Config, tmp_path: Path) -> None:
    make_data(tmp_path)
    next(tmp_path.glob("**/train/**/traj_data.json")).write_text("{")
    with pytest.raises(DataError, match="ALFWorld game .* cannot be read.*download the data again"):
        load_task(config, chat=False)


def test_missing_data_say_where_to_get_them(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="ALFWORLD_DATA is .*, where there is no folder .*train. .*alfworld-download"):
        load_task(config, chat=False)
    monkeypatch.delenv("ALFWORLD_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="ALFWORLD_DATA is not set"):
        load_task(config, chat=False)


def test_without_alfworld_the_extra_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alfworld.agents.environment.alfred_tw_env", None)
    with pytest.raises(ConfigError, match=r"needs the package alfworld .*: pip install -e '\.\[alfworld\]'"):
        load_task(config, chat=False)
