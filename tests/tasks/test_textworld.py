"""agent:textworld and games of one's own, played by the real TextWorld where it is installed."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError
from autolayer.tasks import SPLITS, load_task
from autolayer.tasks.agent import textworld as adapter
from autolayer.tasks.agent.textworld import TextWorldGame, clean_game_text, generate, textworld_task
from autolayer.tasks.environment import act, begin

engine = pytest.mark.skipif(
    importlib.util.find_spec("textworld") is None and "AUTOLAYER_ENGINES" not in os.environ,
    reason="textworld is not installed: make test-agents",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def game(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One generated game; compiling it takes seconds, so it is made once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return generate("train/0")


@engine
def test_a_generated_game_is_won_by_its_own_walkthrough(game: Path) -> None:
    import textworld  # pyright: ignore[reportMissingImports]

    infos = textworld.EnvInfos(policy_commands=True)
    way = textworld.start(str(game), infos).reset().policy_commands
    episode = TextWorldGame()
    first = begin(episode, {"prompt": "", "seed": "train/0"})
    assert "You can: " in first and "look" in first and "$" not in first and not first.endswith(">")
    steps = [act(episode, command) for command in way]
    assert [step.done for step in steps] == [False] * (len(way) - 1) + [True]
    assert sum(step.reward for step in steps) == 1.0 and steps[-1].reward > 0


@engine
def test_the_same_state_is_reached_in_different_ways(game: Path) -> None:
    episode = TextWorldGame()
    begin(episode, {"prompt": "", "game": str(game)})
    here, state = act(episode, "look"), episode.state
    nothing = act(episode, "dance wildly")
    assert episode.state == state and here.observation != nothing.observation
    assert state is not None and "You are carrying" in state


@engine
@pytest.mark.parametrize("command", ["quit", "restart", "save", "", "QUIT now", "\n"])
def test_the_interpreter_is_not_spoken_to(game: Path, command: str) -> None:
    """`quit` would ask whether one is sure, and take every further command for the answer."""
    episode = TextWorldGame(list_actions=False)
    begin(episode, {"prompt": "", "game": str(game)})
    assert act(episode, command)[:3] == ("That is no command of this game.", 0.0, False)
    assert act(episode, "inventory").observation.startswith("You are carrying")


@engine
def test_games_are_made_once(game: Path) -> None:
    before = game.stat().st_mtime_ns
    assert generate("train/0") == game and game.stat().st_mtime_ns == before
    assert sorted(path.suffix for path in game.parent.iterdir()) == [".json", ".z8"], "nothing is left behind"


@engine
def test_textworld_is_a_task() -> None:
    task = load_task(Config(model="m", task="agent:textworld"), chat=True)
    assert {split: len(task.splits[split]) for split in SPLITS} == adapter.SIZES and task.is_chat


@engine
def test_games_of_ones_own(game: Path) -> None:
    task = textworld_task(
        "own", dict.fromkeys(("train",), [game]) | {s: [_copy(game, s)] for s in SPLITS[1:]}, chat=False
    )
    assert task.environment is not None and task.max_turns == 50
    assert begin(task.environment(), task.splits["train"][0])
    with pytest.raises(DataError, match="1 games of 'train' do not exist; the first: .*none.z8"):
        textworld_task("own", {"train": ["none.z8"]}, chat=False)
    with pytest.raises(DataError, match="no row in"):
        textworld_task("own", [game], chat=False)


def _copy(game: Path, name: str) -> Path:
    for suffix in (".z8", ".json"):
        game.with_name(f"{name}{suffix}").write_bytes(game.with_suffix(suffix).read_bytes())
    return game.with_name(f"{name}.z8")


def test_without_textworld_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ConfigError, match=r"need the package textworld .*: pip install 'autolayer\[textworld\]'"):
        load_task(Config(model="m", task="agent:textworld"), chat=False)


def test_banner_prompt_and_status_line_are_no_text_of_the_game() -> None:
    raw = "\n    \\$$$$$$$$| $$  \\\n\n-= Attic =-\nYou've entered an attic.\n\n\n\n>" + " " * 80 + "-= Attic =-0/2"
    assert clean_game_text(raw) == "-= Attic =-\nYou've entered an attic."
