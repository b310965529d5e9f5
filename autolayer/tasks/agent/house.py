"""Generates `agent:house`: find an object in a household and put it in its place, similar to ALFWorld.

ALFWorld is arXiv 2010.03768. A house has four or five rooms with one piece of furniture each. The prompt says what to
put where, which furniture stands in which room, and what can be seen at the start; where the object lies is hidden,
and some furniture has to be opened first. The prompt begins the transcript, so `reset` has nothing to add:

    put cup in fridge
    kitchen has fridge , hall has table , office has drawer , garden has shelf
    hall : table has pen
    > go garden
    garden : shelf is empty
    > go office
    office : drawer is closed
    > open drawer
    office : drawer has cup
    > take cup
    office : drawer is empty , you have cup

Every observation is the whole of what can be seen, so equal observations are equal states, however they were reached.
Left out on purpose: closing, carrying two things, and doors between rooms (every room leads to every other).
"""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autolayer.tasks.agent.actions import words_of
from autolayer.tasks.base import Row, Task, as_prompt
from autolayer.tasks.environment import Step

ROOMS = ("kitchen", "bedroom", "bathroom", "office", "garden", "hall")
CLOSED = ("fridge", "drawer", "box", "closet")
"""Furniture with things in it, which has to be opened."""
OPEN = ("table", "shelf", "desk", "bed")
"""Furniture with things on it."""
OBJECTS = ("cup", "book", "apple", "key", "ball", "pen")

MAX_TURNS = 10
INVALID = "nothing happens"
SIZES = {"train": 4096, "probe": 512, "select": 512, "eval": 1024}
INSTRUCTION = f"""You are in a house and act in it step by step. Your actions:
go ROOM
open FURNITURE (the one in your room; {", ".join(CLOSED)} are closed at first, and you must open them to see what is \
in them, to take it, or to put something in)
take OBJECT (one that lies in your room; you can carry one thing at a time)
put OBJECT (the one you carry, in or on the furniture of your room)
look
You have {MAX_TURNS} actions. Reply with one action and nothing else. Of the three lines below, the first is your \
task, the second says which furniture stands in which room, the third is what you see now."""


def load_house(*, chat: bool) -> Task:
    """Loads the task. The packaged base models read plain text; a chat model also reads which actions there are."""
    splits: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for split, size in SIZES.items():
        rows = splits[split] = []
        for seed in (f"{split}/{index}" for index in itertools.count()):
            if len(rows) == size:
                break
            prompt = make_world(seed).prompt
            if prompt not in seen:
                seen.add(prompt)
                rows.append({"prompt": as_prompt(f"{INSTRUCTION}\n\n{prompt}" if chat else prompt, chat), "seed": seed})
    return Task(
        name="agent:house",
        splits=splits,
        environment=House,
        max_turns=MAX_TURNS,
        max_new_tokens=32 if chat else 8,
        max_context=2048 if chat else 256,
        is_well_formed=is_house_action,
        num_eval=512,
    )


@dataclass(frozen=True)
class World:
    """A house at the start, and the task: to bring the target to the goal, a piece of furniture."""

    furniture: Mapping[str, str]
    """Piece of furniture in each room, in the prompt's order."""
    objects: Mapping[str, tuple[str, ...]]
    """Objects in or on each piece of furniture."""
    start: str
    """The room where the episode begins."""
    target: str
    goal: str

    @property
    def task(self) -> str:
        """The goal as text: `put cup in fridge`."""
        return f"put {self.target} {'in' if self.goal in CLOSED else 'on'} {self.goal}"

    @property
    def prompt(self) -> str:
        """The first text of an episode: the goal, the room of each piece of furniture, and the first view."""
        rooms = " , ".join(f"{room} has {furniture}" for room, furniture in self.furniture.items())
        return f"{self.task}\n{rooms}\n{House(self).view()}"


def make_world(seed: int | str) -> World:
    """Makes the house of a seed: 4 or 5 rooms, 1 to 3 objects, and the target anywhere but at its goal."""
    rng = random.Random(f"house/{seed}")
    num_rooms = rng.choice((4, 4, 5))
    rooms = rng.sample(ROOMS, num_rooms)
    num_closed = rng.choice((1, 2))
    furniture = rng.sample(CLOSED, num_closed) + rng.sample(OPEN, num_rooms - num_closed)
    rng.shuffle(furniture)
    target, *others = rng.sample(OBJECTS, rng.choice((1, 2, 3)))
    goal = rng.choice(furniture)
    lying: dict[str, list[str]] = {piece: [] for piece in furniture}
    lying[rng.choice([piece for piece in furniture if piece != goal])].append(target)
    for other in others:
        lying[rng.choice(furniture)].append(other)
    return World(
        furniture=dict(zip(rooms, furniture, strict=True)),
        objects={piece: tuple(sorted(things)) for piece, things in lying.items()},
        start=rng.choice(rooms),
        target=target,
        goal=goal,
    )


class House:
    """One episode in the house of a row's `seed`. The action that puts the target at its goal earns 1.0."""

    def __init__(self, world: World | None = None) -> None:
        self._begin(make_world(0) if world is None else world)

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begins the episode, and returns '' because the prompt holds the first observation."""
        self._begin(make_world(row["seed"]))
        return ""

    def step(self, action: str) -> Step:
        """Takes `go ROOM`, `open FURNITURE`, `take OBJECT`, `put OBJECT` or `look`. Anything else changes nothing."""
        words = parse_house_action(action)
        if words is None or not self._apply(*words):
            return Step(INVALID, 0.0, False)
        if self.world.target in self.lying[self.world.goal]:
            return Step("done", 1.0, True)
        return Step(self.view(), 0.0, False)

    @property
    def state(self) -> str:
        """The whole view, also after an action that was not possible."""
        return self.view()

    def view(self) -> str:
        """Returns what can be seen: the room, the objects there, and the object that is held."""
        here = self.here
        if here in self.closed:
            seen = f"{here} is closed"
        else:
            seen = f"{here} has {' and '.join(self.lying[here])}" if self.lying[here] else f"{here} is empty"
        return f"{self.room} : {seen}" + (f" , you have {self.held}" if self.held else "")

    @property
    def here(self) -> str:
        """The furniture of the room."""
        return self.world.furniture[self.room]

    def _begin(self, world: World) -> None:
        self.world = world
        self.room = world.start
        self.held: str | None = None
        self.closed = {piece for piece in world.furniture.values() if piece in CLOSED}
        self.lying = {piece: list(things) for piece, things in world.objects.items()}

    def _apply(self, verb: str, noun: str) -> bool:
        things = [] if self.here in self.closed else self.lying[self.here]
        if verb == "go" and noun in self.world.furniture and noun != self.room:
            self.room = noun
        elif verb == "open" and noun == self.here and noun in self.closed:
            self.closed.remove(noun)
        elif verb == "take" and noun in things and self.held is None:
            things.remove(noun)
            self.held = noun
        elif verb == "put" and noun == self.held and self.here not in self.closed:
            self.lying[self.here] = sorted([*things, noun])
            self.held = None
        else:
            return verb == "look"
        return True


def is_house_action(text: str) -> bool:
    """Returns True if the text looks like an action, possible or not."""
    return parse_house_action(text) is not None


def parse_house_action(action: str) -> tuple[str, str] | None:
    """Returns verb and noun of an action, or None. In `put cup in fridge` the first noun counts."""
    words = words_of(action)
    if words == ["look"]:
        return "look", ""
    nouns = {"go": ROOMS, "open": (*CLOSED, *OPEN), "take": OBJECTS, "put": OBJECTS}
    if len(words) < 2 or words[1] not in nouns.get(words[0], ()):
        return None
    if len(words) == 2 or (len(words) == 4 and words[0] in ("put", "take") and words[2] in ("in", "on", "from")):
        return words[0], words[1]
    return None
