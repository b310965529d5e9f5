"""Defines players of `agent:house`: an explorer, and the careless writers of the pretraining text.

The explorer knows only what it has read. The writers explore, but sometimes take another action. A language model that
imitates them knows every action and its effect, and RL can improve it by removing the carelessness. They solve somewhat
less than half of the houses, as tests/tasks/test_house.py measures.
"""

import random

from autolayer.tasks.agent.house import CLOSED, OBJECTS, OPEN, ROOMS, House, make_world

VERBS = ("go", "open", "take", "put", "look")
_OTHERS = ("in", "on", "has", "and", "is", "closed", "empty", "you", "have", "nothing", "happens", "done", ":", ",")
WORDS: tuple[str, ...] = (*VERBS, *ROOMS, *CLOSED, *OPEN, *OBJECTS, *_OTHERS)
"""Every word of prompts, observations and actions, which blanks and line ends separate."""

CARELESS = (0.2, 0.4, 0.6)
"""Shares of actions that an explorer would not take. Each writer has one of these shares."""
PATIENCE = 8
"""Actions after which a writer gives up."""
BLUNDERS = 0.2
"""Share of the careless actions that may be impossible."""


class Explorer:
    """Acts only on what it reads, and searches the rooms in the order of the prompt.

    Example:
        explorer = Explorer(row["prompt"])
        step = house.step(explorer.choose())
        explorer.read(step.observation)
    """

    def __init__(self, prompt: str) -> None:
        task, rooms, view = prompt.splitlines()
        _, self.target, _, self.goal = task.split()
        pairs = [room.split() for room in rooms.split(" , ")]
        self.furniture = {room: piece for room, _, piece in pairs}
        self.seen: dict[str, list[str] | None] = {}
        """Objects in each room that was seen, or None if the furniture is closed."""
        self.read(view)

    def read(self, observation: str) -> None:
        """Reads an observation."""
        if " : " not in observation:  # nothing happened
            return
        self.room, _, view = observation.partition(" : ")
        lying, _, held = view.partition(" , you have ")
        self.held = held or None
        words = lying.split()
        self.seen[self.room] = None if words[-1] == "closed" else [w for w in words[2:] if w not in ("and", "empty")]

    def choose(self) -> str:
        """Returns the next action."""
        here = self.furniture[self.room]
        things = self.seen[self.room]
        if self.held == self.target and here != self.goal:
            return f"go {next(room for room, piece in self.furniture.items() if piece == self.goal)}"
        if things is None and (self.held is not None or here != self.goal):
            return f"open {here}"
        if self.held is not None:
            return f"put {self.held}"
        if things and self.target in things:
            return f"take {self.target}"
        return f"go {self._next_room()}"

    def possible(self) -> list[str]:
        """Returns every action that changes something, and `look`."""
        things = self.seen[self.room]
        actions = ["look", *(f"go {room}" for room in self.furniture if room != self.room)]
        if things is None:
            actions.append(f"open {self.furniture[self.room]}")
        elif self.held is None:
            actions += [f"take {thing}" for thing in things]
        else:
            actions.append(f"put {self.held}")
        return actions

    def stray(self, rng: random.Random) -> str:
        """Returns a careless writer's action, which is mostly possible."""
        if rng.random() >= BLUNDERS:
            return rng.choice(self.possible())
        verb, noun = rng.choice(("open", "go", "take", "put")), rng.choice((self.target, *OBJECTS))
        return f"{verb} {({'open': self.furniture[self.room], 'go': self.room}).get(verb, noun)}"

    def _next_room(self) -> str:
        """Returns the room where the target was seen, else the first room that was not searched."""
        others = [room for room in self.furniture if room != self.room]
        known = [room for room in others if self.target in (self.seen.get(room) or ())]
        unknown = [room for room in others if self.seen.get(room) is None and self.furniture[room] != self.goal]
        return (known or unknown or others)[0]


def house_episode(rng: random.Random, careless: float | None = None) -> list[tuple[str, str]]:
    """Returns one episode of a careless writer: what it reads and the action that it takes, for each turn.

    A language model is trained on the actions only; the observations come from the house.

    Args:
        rng: Draws the house and the writer.
        careless: The writer's share of other actions. None draws one of `CARELESS`.

    Returns:
        (text, action) pairs. The first text is the prompt, and every other one an observation.
    """
    house = House(make_world(f"corpus/{rng.getrandbits(48)}"))
    return play(house, rng, rng.choice(CARELESS) if careless is None else careless)[0]


def play(house: House, rng: random.Random, careless: float = 0.0) -> tuple[list[tuple[str, str]], float]:
    """Plays an explorer that takes another action with probability `careless`.

    Returns:
        The episode as (text, action) pairs, and its reward.
    """
    read = house.world.prompt
    explorer = Explorer(read)
    turns: list[tuple[str, str]] = []
    total = 0.0
    for _ in range(PATIENCE):
        action = explorer.stray(rng) if rng.random() < careless else explorer.choose()
        turns.append((read, action))
        step = house.step(action)
        read = step.observation
        total += step.reward
        explorer.read(read)
        if step.done:
            break
    return turns, total
