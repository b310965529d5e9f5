"""Loads `agent:textworld`, and any game that TextWorld plays (arXiv 1806.11532): generated games, or your own files.

`agent:textworld` generates its games by seed when they are first played, and keeps them in the cache folder. For your
own games (.z3 to .z8, or .json), write a Python file for `--task FILE.py:games`:

    def games(chat):
        return textworld_task("my-games", {"train": [...], "probe": [...], "select": [...], "eval": [...]}, chat=chat)

`textworld` is an extra, because it installs jericho, which is under the GPL. Left out on purpose: TextWorld's own
challenges and shaped rewards; a game's score is its reward.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from autolayer.core.errors import ConfigError, DataError
from autolayer.tasks.agent.actions import action_of
from autolayer.tasks.agent.rows import as_prompt
from autolayer.tasks.base import SPLITS, Row, Task, prompt_hash, split_of
from autolayer.tasks.environment import Step

INSTALL = "pip install 'autolayer[textworld]'"
SIZES = {"train": 1024, "probe": 128, "select": 128, "eval": 128}
NUM_ROOMS, NUM_OBJECTS, QUEST_LENGTH = 3, 5, 4
MAX_TURNS = 15
INSTRUCTION = """You play a text game. Every turn you read what happened and reply with one command and nothing else, \
such as: look, inventory, go north, open red door, take key, unlock chest with key, put apple on table."""
META = frozenset(
    ("quit", "q", "restart", "restore", "save", "undo", "script", "transcript", "verify", "version", "superbrief")
)
"""Commands to the interpreter rather than to the game: some of them wait for an answer or write files."""


class TextWorldGame:
    """One episode of a game. `reset` takes a row with `game`, a file, or with `seed`, for a generated game.

    The reward of an action is the rise of the score, as a share of the game's highest score. A game without a score
    pays 1.0 for winning.
    """

    def __init__(self, *, list_actions: bool = True) -> None:
        self.list_actions = list_actions
        """True if an observation ends with the possible commands, provided that the game lists them."""
        self._game: Any = None
        self._state: Any = None
        self._score = 0.0

    def reset(self, row: Mapping[str, Any]) -> str:
        """Starts the game, and returns the objective and what can be seen."""
        textworld = import_textworld()
        infos = textworld.EnvInfos(
            objective=True, description=True, inventory=True, admissible_commands=self.list_actions, score=True,
            max_score=True, won=True, lost=True,
        )  # fmt: skip
        game = Path(row["game"] if "game" in row else generate(row["seed"]))
        with warnings.catch_warnings():
            if game.with_suffix(".json").is_file():  # TextWorld's own: it keeps the score that jericho cannot read
                warnings.filterwarnings("ignore", message="Game .* is not fully supported")
            self._game = textworld.start(str(game), infos)
        state = self._state = self._game.reset()
        self._score = float(state.score or 0)
        begin = [state.objective, state.description] if state.objective and state.description else [state.feedback]
        return self._observation(state, "\n".join(map(clean_game_text, begin)))

    def step(self, action: str) -> Step:
        """Sends one command to the game."""
        command = action_of(action)
        if not command or command.split()[0] in META:
            return Step(self._observation(self._state, "That is no command of this game."), 0.0, False)
        self._state, _, done = self._game.step(command)
        score = float(self._state.score or 0)
        if self._state.max_score:
            reward, self._score = (score - self._score) / self._state.max_score, score
        else:
            reward = float(bool(self._state.won))
        return Step(self._observation(self._state, clean_game_text(self._state.feedback)), reward, bool(done))

    def close(self) -> None:
        """Closes the game engine."""
        if self._game is not None:
            self._game.close()

    @property
    def state(self) -> str | None:
        """The description of the room and the inventory, if the game gives them."""
        return (
            "\n".join(clean_game_text(part) for part in (self._state.description, self._state.inventory) if part)
            or None
        )

    def _observation(self, state: Any, text: str) -> str:
        commands = state.admissible_commands if self.list_actions else None
        return f"{text}\nYou can: {', '.join(commands)}." if commands else text


def load_textworld(*, chat: bool) -> Task:
    """Loads the task `agent:textworld`, whose games are made when they are first played."""
    import_textworld()
    prompt = as_prompt(INSTRUCTION, chat)
    splits = {
        split: [{"prompt": prompt, "seed": f"{split}/{index}"} for index in range(num)] for split, num in SIZES.items()
    }
    return _task("agent:textworld", splits, chat=chat, list_actions=True, max_turns=MAX_TURNS)


def textworld_task(
    name: str,
    games: Iterable[str | Path] | Mapping[str, Iterable[str | Path]],
    *,
    chat: bool,
    max_turns: int = 50,
    list_actions: bool = True,
) -> Task:
    """Makes a task of game files.

    Args:
        name: Name for reports and folders.
        games: Files, split 70/10/10/10 by the hash of their names, or the files of each split.
        chat: Whether the model has a chat template.
        max_turns: Maximum number of commands in an episode.
        list_actions: Ends observations with the commands that are possible.

    Raises:
        ConfigError: TextWorld is not installed.
        DataError: A file does not exist, or a split is left empty.
    """
    import_textworld()
    if not isinstance(games, Mapping):
        files = sorted(map(Path, games), key=lambda path: path.name)
        games = {split: [path for path in files if split_of(path.name) == split] for split in SPLITS}
    prompt = as_prompt(INSTRUCTION, chat)
    splits: dict[str, list[Row]] = {}
    for split, paths in games.items():
        rows = splits[str(split)] = [{"prompt": prompt, "game": str(Path(path).absolute())} for path in paths]
        if missing := [row["game"] for row in rows if not Path(row["game"]).is_file()]:
            raise DataError(f"task '{name}': {len(missing)} games of '{split}' do not exist; the first: {missing[0]}.")
    return _task(name, splits, chat=chat, list_actions=list_actions, max_turns=max_turns)


def import_textworld() -> Any:
    """Returns the package textworld.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import textworld  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"TextWorld games need the package textworld ({error}): {INSTALL}.") from error
    return textworld


def generate(seed: str) -> Path:
    """Returns the game of a seed, which is made once: 3 rooms, 5 objects, a quest of 4 commands, in a second or two.

    Another process may make the same game meanwhile, so each works in a folder of its own and moves the result.
    """
    textworld = import_textworld()
    name = f"{seed.replace('/', '-')}-{NUM_ROOMS}-{NUM_OBJECTS}-{QUEST_LENGTH}-{textworld.__version__}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autolayer" / "textworld"
    game = cache / f"{name}.z8"
    if not game.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            options = textworld.GameOptions()
            options.seeds = prompt_hash(seed) % 2**31
            options.nb_rooms, options.nb_objects, options.quest_length = NUM_ROOMS, NUM_OBJECTS, QUEST_LENGTH
            options.path = str(Path(folder) / f"{name}.z8")
            textworld.make(options)
            for suffix in (".json", ".z8"):  # the game last: once it is there, what it needs is there
                os.replace(Path(folder) / f"{name}{suffix}", cache / f"{name}{suffix}")
    return game


def clean_game_text(text: str) -> str:
    """Returns a game's text without the banner, the prompt sign, the status line and blank lines."""
    text = re.sub(r"\n?>?\s{20,}-=.*\Z", "", text)
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line and line != ">" and not re.fullmatch(r"[\\|/_$ ]+", line))


def _task(name: str, splits: Mapping[str, list[Row]], *, chat: bool, list_actions: bool, max_turns: int) -> Task:
    return Task(
        name=name,
        splits=splits,
        environment=partial(TextWorldGame, list_actions=list_actions),
        max_turns=max_turns,
        max_new_tokens=128 if chat else 16,
        num_eval=128,
    )
