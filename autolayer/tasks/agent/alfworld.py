"""Loads `agent:alfworld`: the household tasks of ALFWorld (arXiv 2010.03768), in its text mode.

The settings follow verl-agent's GiGPO recipe (arXiv 2505.10978): at most 50 turns, the admissible actions in every
observation, and a reward for success with a small penalty (there 10 and .1, for an answer without its tags).

`alfworld-download` fetches the games, and ALFWORLD_DATA names their folder. `train`, `probe` and `select` are the
training games 80/10/10 by the hash of the trial's name; `eval` is `valid_seen`, or with `ALFWORLD_EVAL=valid_unseen`
the rooms never trained on. Every row is one game file; ALFWorld's batches, gym interface and 3D engine are left out.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolayer.core.errors import ConfigError, DataError
from autolayer.tasks.agent.actions import action_of
from autolayer.tasks.base import SPLITS, Row, Task, as_prompt, prompt_hash
from autolayer.tasks.environment import Step

FOLDER = "json_2.1.1"
"""Folder of the games inside ALFWORLD_DATA, as `alfworld-download` makes it."""
TASK_TYPES = (
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep", "pick_two_obj_and_place",
)  # fmt: skip
MAX_TURNS = 50
PENALTY = 0.01
"""Cost of an action that is not admissible. A win pays 1."""
INSTRUCTION = """You act in a household, step by step, to complete a task. Every turn you read what you see and which \
actions are admissible. Reply with one of them, word for word."""
THINK = """ You may reason first, inside <think> </think>; then give the action inside <action> </action>."""


class AlfredGame:
    """One episode of a game. `reset` takes a row with `game`, the file of a trial."""

    def __init__(self) -> None:
        self._game: Any = None
        self._admissible: list[str] = []

    def reset(self, row: Mapping[str, Any]) -> str:
        """Starts the game, and returns the room and the task."""
        textworld, demangler = _import_alfworld()
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        # Without the demangler things would be called mug_bar__minus_00_dot_58 instead of mug 1.
        self._game = textworld.start(row["game"], infos, wrappers=[demangler(shuffle=False)])
        state = self._game.reset()
        self._admissible = list(state["admissible_commands"])
        _, _, text = state["feedback"].partition("=-")  # drops the greeting
        return self._observation(text or state["feedback"])

    def step(self, action: str) -> Step:
        """Takes one admissible action, word for word. Any other text changes nothing and costs the penalty."""
        command = action_of(action)
        is_valid = command in self._admissible
        state, _, _ = self._game.step(command)
        self._admissible = list(state["admissible_commands"])
        reward = float(bool(state["won"])) - (0.0 if is_valid else PENALTY)
        return Step(self._observation(state["feedback"]), reward, bool(state["won"]))

    def close(self) -> None:
        """Closes the game engine."""
        if self._game is not None:
            self._game.close()

    def _observation(self, text: str) -> str:
        actions = ", ".join(action for action in self._admissible if action != "help")
        return f"{text.strip()}\nAdmissible actions: {actions}."


def load_alfworld(*, chat: bool) -> Task:
    """Loads the task `agent:alfworld`, if ALFWorld and its data are installed."""
    _import_alfworld()
    held_out = os.environ.get("ALFWORLD_EVAL") or "valid_seen"
    root = _data_folder()
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    prompt = as_prompt(INSTRUCTION + (THINK if chat else ""), chat)
    for game in find_games(root / "train"):
        share = prompt_hash(_name(game)) % 10
        split = "train" if share < 8 else SPLITS[share - 7]
        splits[split].append({"prompt": prompt, "game": str(game)})
    splits["eval"] = [{"prompt": prompt, "game": str(game)} for game in find_games(root / held_out)]
    return Task(
        name="agent:alfworld",
        splits=splits,
        environment=AlfredGame,
        max_turns=MAX_TURNS,
        max_new_tokens=512 if chat else 32,
    )


def _data_folder() -> Path:
    named = os.environ.get("ALFWORLD_DATA")
    root = Path(named or "~/.cache/alfworld").expanduser() / FOLDER
    if not (root / "train").is_dir():
        where = f"ALFWORLD_DATA is {named}, where" if named else "ALFWORLD_DATA is not set, and"
        raise ConfigError(
            f"agent:alfworld needs the games of ALFWorld; {where} there is no folder {root / 'train'}. Fetch them with "
            "`alfworld-download`, and set ALFWORLD_DATA to the folder they are in."
        )
    return root


def find_games(folder: Path) -> list[Path]:
    """Returns the solvable games below a folder, in an order that does not depend on the folder's place.

    It selects as ALFWorld's AlfredTWEnv does: the six task types, without movable receptacles and slicing.
    """
    found = []
    names = {_name(path): path for path in folder.glob("**/game.tw-pddl")}
    for name in sorted(names, key=prompt_hash):
        game = names[name]
        if "movable" in name or "Sliced" in name:
            continue
        try:
            kind = json.loads((game.parent / "traj_data.json").read_text(encoding="utf-8"))["task_type"]
            is_solvable = json.loads(game.read_text(encoding="utf-8")).get("solvable", False)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"the ALFWorld game {game} cannot be read ({error!r}): download the data again.") from error
        if kind in TASK_TYPES and is_solvable:
            found.append(game)
    if not found:
        raise DataError(f"there is no solvable game of ALFWorld below {folder}: run `alfworld-download` again.")
    return found


def _import_alfworld() -> tuple[Any, Any]:
    """Returns TextWorld, and ALFWorld's wrapper that gives things their names."""
    try:
        import textworld  # pyright: ignore[reportMissingImports]
        from alfworld.agents.environment.alfred_tw_env import (  # pyright: ignore[reportMissingImports]
            AlfredDemangler,
        )
    except ImportError as error:
        raise ConfigError(
            f"agent:alfworld needs the package alfworld ({error}): pip install -e '.[alfworld]'."
        ) from error
    return textworld, AlfredDemangler


def _name(game: Path) -> str:
    """Returns task and trial: `pick_and_place_simple-Mug-None-Desk-308/trial_T2019...`."""
    return "/".join(game.parts[-3:-1])
