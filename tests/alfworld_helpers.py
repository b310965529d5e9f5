"""A game in ALFWorld's own format, and a stand-in for the engine that plays it."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest


class FakeEngine:
    """The same game by hand: a dictionary of states as textworld.core.Environment returns them."""

    def __init__(self) -> None:
        self.place, self.is_open, self.mug = "", False, "drawer 1"

    def close(self) -> None:
        pass

    def reset(self) -> dict[str, Any]:
        return self.state(
            "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you "
            "see a desk 1, and a drawer 1.\n\nYour task is to: put a mug in desk."
        )

    def step(self, command: str) -> tuple[dict[str, Any], int, bool]:
        seen = "Nothing happens."
        if command in self.commands():
            verb, _, rest = command.partition(" ")
            if verb == "go":
                self.place = rest.removeprefix("to ")
                lid = "On the desk 1, you see nothing." if self.place == "desk 1" else "The drawer 1 is closed."
                seen = f"You arrive at {self.place}. {lid}"
            elif verb == "open":
                self.is_open = True
                seen = "You open the drawer 1. The drawer 1 is open. In it, you see a mug 1."
            elif verb == "take":
                seen = f"You pick up the mug 1 from the {self.mug}."
                self.mug = ""
            elif verb == "move":
                self.mug = self.place
                seen = f"You move the mug 1 to the {self.mug}."
        state = self.state(seen)
        return state, int(state["won"]), state["won"]

    def commands(self) -> list[str]:
        found = ["inventory", "look", *(f"go to {r}" for r in ("desk 1", "drawer 1") if r != self.place)]
        if self.place:
            found.append(f"examine {self.place}")
        if self.place == "drawer 1":
            found.append("close drawer 1" if self.is_open else "open drawer 1")
        is_open = self.place == "desk 1" or (self.place == "drawer 1" and self.is_open)
        if self.mug == self.place and is_open:
            found.append(f"take mug 1 from {self.place}")
        if not self.mug:
            found += ["examine mug 1", *([f"move mug 1 to {self.place}"] if is_open else [])]
        return sorted(found)

    def state(self, feedback: str) -> dict[str, Any]:
        return {"feedback": feedback, "admissible_commands": self.commands(), "won": self.mug == "desk 1"}


def install_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(path: str, request_infos: Any, wrappers: list[Any]) -> FakeEngine:
        assert Path(path).is_file() and request_infos["admissible_commands"] and wrappers == [{"shuffle": False}]
        return FakeEngine()

    for name in ("alfworld", "alfworld.agents", "alfworld.agents.environment"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module: Any = types.ModuleType("alfworld.agents.environment.alfred_tw_env")
    module.AlfredDemangler = dict
    monkeypatch.setitem(sys.modules, module.__name__, module)
    textworld: Any = types.ModuleType("textworld")
    textworld.start, textworld.EnvInfos = start, dict
    monkeypatch.setitem(sys.modules, "textworld", textworld)


def make_data(root: Path, num: int = 60, **changes: Any) -> Path:
    for split, count in (("train", num), ("valid_seen", 3), ("valid_unseen", 2)):
        for i in range(count):
            trial = root / "json_2.1.1" / split / f"pick_and_place_simple-Mug-None-Desk-{i}" / f"trial_{split}_{i}"
            trial.mkdir(parents=True)
            (trial / "traj_data.json").write_text(json.dumps({"task_type": "pick_and_place_simple", **changes}))
            (trial / "game.tw-pddl").write_text(json.dumps({"solvable": i != 0}))
    return root
