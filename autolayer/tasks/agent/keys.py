"""Generates `agent:keys`: find the way to the exit of a small maze, where coloured keys open doors of their colour.

A maze has nine cells, `a1` to `c3`, and one way between any two of them. Doors close two or three of the passages, one
or two of them on the way to the exit. Unlike in a house, nothing is hidden: the prompt describes the whole maze, and
the task is to plan. An episode:

    go to c1
    ways : a1 a2 , a2 a3 , a2 b2 , ... , b1 c1 red door , b3 c3 blue door
    keys : red in b3 , blue in a1
    a2 : ways a1 a3 b2
    > go b2
    b2 : ways a2 b1 b3
    > go b3
    b3 : ways b2 , blue door , red key
    > take red
    b3 : ways b2 , blue door , you have red

Left out on purpose: keys that wear out, and putting one down.
"""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from autolayer.tasks.agent.actions import words_of
from autolayer.tasks.environment import Step

CELLS = tuple(f"{column}{row}" for column in "abc" for row in "123")
COLOURS = ("red", "blue", "green")
VERBS = ("go", "take", "open")
_OTHERS = ("to", "ways", "keys", "key", "door", "in", "you", "have", "and", "nothing", "happens", "done", ":", ",")
WORDS: tuple[str, ...] = (*VERBS, *CELLS, *COLOURS, *_OTHERS)
"""Every word of prompts, observations and actions, which blanks and line ends separate."""

MAX_TURNS = 20
SHORTEST, LONGEST = 7, 14
"""Fewest and most actions that the best player may need."""
INVALID = "nothing happens"
DOOR_REWARD = 0.2
"""Dense reward for opening a door on the way to the exit. The exit then pays the rest of 1."""

Passage = tuple[str, str]
"""Two neighbouring cells, in the order of `CELLS`."""

_NEIGHBOURS: list[Passage] = [
    (a, b) for a in CELLS for b in CELLS if a < b and abs(ord(a[0]) - ord(b[0])) + abs(int(a[1]) - int(b[1])) == 1
]


class Position(NamedTuple):
    """The part of the maze that changes in an episode."""

    cell: str
    keys: frozenset[str] = frozenset()
    opened: frozenset[str] = frozenset()
    """The colours of the doors that stand open."""


@dataclass(frozen=True)
class Maze:
    """The part of the maze that does not change."""

    doors: Mapping[Passage, str | None]
    """Every passage, with the colour of its door if it has one. Every door has another colour."""
    keys: Mapping[str, str]
    """The cell of each colour's key."""
    start: str
    exit: str

    @property
    def prompt(self) -> str:
        """The first text of an episode: the whole maze, and the first view."""
        ways = " , ".join(f"{a} {b}" + (f" {door} door" if door else "") for (a, b), door in self.doors.items())
        keys = " , ".join(f"{colour} in {cell}" for colour, cell in self.keys.items())
        return f"go to {self.exit}\nways : {ways}\nkeys : {keys}\n{self.view(Position(self.start))}"

    @cached_property
    def around(self) -> dict[str, list[tuple[str, str | None]]]:
        """The neighbours of each cell, with the door between them."""
        both = [*self.doors.items(), *(((b, a), door) for (a, b), door in self.doors.items())]
        return {cell: [(b, door) for (a, b), door in both if a == cell] for cell in CELLS}

    def view(self, at: Position) -> str:
        """Returns what can be seen: passages, closed doors and a key here, and the keys that are held."""
        around = self.around[at.cell]
        ways = [cell for cell, door in around if door is None or door in at.opened]
        parts = [" ".join(("ways", *sorted(ways)))] if ways else []
        parts += [f"{door} door" for _, door in around if door is not None and door not in at.opened]
        parts += [f"{key} key" for key, cell in self.keys.items() if cell == at.cell and key not in at.keys]
        parts += [f"you have {' and '.join(sorted(at.keys))}"] if at.keys else []
        return f"{at.cell} : {' , '.join(parts)}"

    def moves(self, at: Position) -> Iterator[tuple[str, Position]]:
        """Yields every possible action and the position that it leads to."""
        for key, cell in self.keys.items():
            if cell == at.cell and key not in at.keys:
                yield f"take {key}", at._replace(keys=at.keys | {key})
        for cell, door in self.around[at.cell]:
            if door is None or door in at.opened:
                yield f"go {cell}", at._replace(cell=cell)
            elif door in at.keys:
                yield f"open {door}", at._replace(opened=at.opened | {door})


def solve(maze: Maze, at: Position) -> list[str] | None:
    """Returns the fewest actions from a position to the exit, by breadth-first search, or None without a way."""
    paths: dict[Position, list[str]] = {at: []}
    queue = deque([at])
    while queue:
        at = queue.popleft()
        if at.cell == maze.exit:
            return paths[at]
        for action, reached in maze.moves(at):
            if reached not in paths:
                paths[reached] = [*paths[at], action]
                queue.append(reached)
    return None


def make_maze(seed: int | str) -> Maze:
    """Returns the maze of a seed, drawn until the best way has `SHORTEST` to `LONGEST` actions and opens a door."""
    rng = random.Random(f"keys/{seed}")
    while True:
        maze = _draw(rng)
        actions = solve(maze, Position(maze.start)) or []
        if SHORTEST <= len(actions) <= LONGEST and any(action.startswith("open") for action in actions):
            return maze


class Keys:
    """One episode in a maze. `reset` takes a row with a `seed`.

    The reward is 1.0 for reaching the exit, else 0.0. With `dense`, `DOOR_REWARD` of it comes earlier for every door
    that has to be opened, so that the sum is never above 1.
    """

    def __init__(self, maze: Maze | None = None, *, dense: bool = False) -> None:
        self.dense = dense
        self._begin(make_maze(0) if maze is None else maze)

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begins the episode, and returns '' because the prompt holds the first observation."""
        self._begin(make_maze(row["seed"]))
        return ""

    def step(self, action: str) -> Step:
        """Takes `go CELL`, `take COLOUR` or `open COLOUR`. Anything else changes nothing."""
        words = parse_keys_action(action)
        reached = dict(self.maze.moves(self.at)).get(" ".join(words or ()))
        if reached is None:
            return Step(INVALID, 0.0, False)
        fresh = (reached.opened - self.at.opened) & self._needed
        self.at = reached
        if reached.cell == self.maze.exit:
            return Step("done", 1.0 - self._paid, True)
        reward = DOOR_REWARD * len(fresh) if self.dense else 0.0
        self._paid += reward
        return Step(self.maze.view(reached), reward, False)

    @property
    def state(self) -> str:
        """The view, and the doors that are open elsewhere."""
        return f"{self.maze.view(self.at)} | {' '.join(sorted(self.at.opened))}"

    def _begin(self, maze: Maze) -> None:
        self.maze = maze
        self.at = Position(maze.start)
        actions = solve(maze, self.at) or []
        self._needed = {words[1] for words in map(str.split, actions) if words[0] == "open"}
        self._paid = 0.0


def parse_keys_action(action: str) -> tuple[str, str] | None:
    """Returns verb and noun of an action, or None. `take the red key` and `open red door` are accepted too."""
    words = words_of(action)
    if len(words) == 3 and (words[0], words[2]) in (("take", "key"), ("open", "door")):
        words.pop()
    if len(words) != 2 or words[0] not in VERBS or words[1] not in (CELLS if words[0] == "go" else COLOURS):
        return None
    return words[0], words[1]


def is_keys_action(text: str) -> bool:
    """Returns True if the text looks like an action, possible or not."""
    return parse_keys_action(text) is not None


def _draw(rng: random.Random) -> Maze:
    """Draws a random tree over the cells, two or three doors in it, and a key for each anywhere."""
    reached, passages = {rng.choice(CELLS)}, []
    while len(reached) < len(CELLS):
        passage = rng.choice([(a, b) for a, b in _NEIGHBOURS if (a in reached) != (b in reached)])
        reached.update(passage)
        passages.append(passage)
    colours = rng.sample(COLOURS, rng.choice((2, 3)))
    closed = dict(zip(rng.sample(sorted(passages), len(colours)), colours, strict=True))
    start, end = rng.sample(CELLS, 2)
    return Maze(
        doors={passage: closed.get(passage) for passage in sorted(passages)},
        keys={colour: rng.choice(CELLS) for colour in colours},
        start=start,
        exit=end,
    )
