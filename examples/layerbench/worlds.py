"""The small worlds that LayerBench's agents walk in, over several turns: pretraining lines, rows and environments.

A ring of places, of which the walker sees the one it is in; `R` and `L` go to the next or the one before. As in
languages.py writers know how to walk, but mean different things, and the reward wants one: the shorter way round
(`Trip`), or past the shop first (`Errand`). An episode looks like this, the prompt `372g:` and the place `c` first:

    372g:c
    > R
    d
    > R
    ...
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from languages import FILLER, LETTERS, Line

from autolayer.rollouts.multi_turn import PROMPT
from autolayer.tasks.environment import Step

RING = 10
MAX_TURNS = 5
CARRYING = "+"
"""Behind the place, for a walker that has been in the shop."""


@dataclass(frozen=True)
class Journey:
    """A walker's task. Places are numbers on the ring."""

    start: int
    goal: int
    shop: int | None = None
    """Place that has to be passed first."""
    words: str = ""
    """Words of the prompt before the goal."""

    @property
    def prompt(self) -> str:
        return f"{self.words}{'' if self.shop is None else LETTERS[self.shop]}{LETTERS[self.goal]}:"


class Walker:
    """One episode. 1.0 for being at the goal (and not without the shop) within `MAX_TURNS` actions, else 0.0."""

    def __init__(self) -> None:
        self.journey, self.place, self.carrying = Journey(0, 0), 0, True

    def reset(self, row: Mapping[str, Any]) -> str:
        return self.begin(Journey(**{name: row[name] for name in ("start", "goal", "shop", "words")}))

    def begin(self, journey: Journey) -> str:
        self.journey, self.place, self.carrying = journey, journey.start, journey.shop is None
        return self.view

    @property
    def view(self) -> str:
        return LETTERS[self.place] + (CARRYING if self.journey.shop is not None and self.carrying else "")

    def step(self, action: str) -> Step:
        """Moves by `R` or `L`; any other action changes nothing."""
        self.place = (self.place + {"R": 1, "L": -1}.get(action, 0)) % RING
        self.carrying |= self.place == self.journey.shop
        done = self.carrying and self.place == self.journey.goal
        return Step(self.view, float(done), done)


class World(Protocol):
    """One kind of journey."""

    def draw(self, rng: random.Random) -> Journey:
        """Draws a journey that can be made within `MAX_TURNS`."""
        ...

    def writer(self, rng: random.Random, journey: Journey) -> str:
        """Draws what a writer has in mind: "short" or "long" for the way it takes, "goal" for leaving out the shop."""
        ...


SLIP = 0.1
"""Share of moves in which a writer goes the wrong way by mistake."""


def short_way(place: int, wanted: int) -> int:
    """Returns the direction of the shorter way, 1 or -1."""
    return 1 if (wanted - place) % RING <= RING // 2 else -1


def corpus(world: World, rng: random.Random) -> Line:
    """Returns one episode by a writer: in turns, what is read and the action written."""
    journey, walker = world.draw(rng), Walker()
    meant, read, parts = world.writer(rng, journey), journey.prompt + walker.begin(journey), []
    first = short_way(journey.start, journey.goal) * (-1 if meant == "long" else 1)
    for _ in range(MAX_TURNS):
        move = first
        if journey.shop is not None:
            move = short_way(walker.place, journey.goal if walker.carrying or meant == "goal" else journey.shop)
        if rng.random() < SLIP:
            move = -move
        action = "R" if move == 1 else "L"
        parts += [read + PROMPT, f"{action}\n"]
        step = walker.step(action)
        read = step.observation
        if step.done:
            break
    return tuple(parts)


def _words(rng: random.Random) -> str:
    return "".join(rng.choice(FILLER) for _ in range(3))


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A journey from one place to another. Most writers take the longer way, and run out of turns."""

    short: float = 0.25

    def draw(self, rng: random.Random) -> Journey:
        start, away = rng.randrange(RING), rng.choice((-1, 1)) * rng.randint(2, 4)
        return Journey(start, (start + away) % RING, words=_words(rng))

    def writer(self, rng: random.Random, journey: Journey) -> str:
        return "short" if rng.random() < self.short else "long"


@dataclass(frozen=True, kw_only=True)
class Errand:
    """The goal counts only after the shop, which lies the other way. Most writers forget it."""

    mindful: float = 0.35

    def draw(self, rng: random.Random) -> Journey:
        start, direction = rng.randrange(RING), rng.choice((-1, 1))
        to_shop, to_goal = rng.choice(((1, 1), (1, 2), (1, 3), (2, 1)))
        shop, goal = (start + direction * to_shop) % RING, (start - direction * to_goal) % RING
        return Journey(start, goal, shop, words=_words(rng))

    def writer(self, rng: random.Random, journey: Journey) -> str:
        return "short" if rng.random() < self.mindful else "goal"


WORLDS: dict[str, World] = {"trip": Trip(), "errand": Errand()}
"""Worlds by the name of the task in tasks.py."""
