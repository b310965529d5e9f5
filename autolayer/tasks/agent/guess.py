"""Generates `agent:guess`: guess a number from 1 to 9 in three turns, for small pretrained models.

The prompt shows a finished game, and the answer to a guess says where the number is:

    A number from 1 to 9.
    > 5
    higher
    > 8
    lower
    > 7
    right
"""

import random
from collections.abc import Mapping
from itertools import count
from typing import Any

from autolayer.tasks.base import Row, Task, split_of
from autolayer.tasks.environment import Step
from autolayer.tasks.few_tokens import SIZES
from autolayer.tasks.generated import without_special_tokens
from autolayer.tasks.math.small_numbers import is_number

LOWEST, HIGHEST, MAX_TURNS = 1, 9, 3
TITLE = f"A number from {LOWEST} to {HIGHEST}."


class Guess:
    """One game. The right guess earns 1.0."""

    def __init__(self) -> None:
        self.number = 0

    def reset(self, row: Mapping[str, Any]) -> str:
        """Begins the game, and returns '' because the prompt says all."""
        self.number = row["number"]
        return ""

    def step(self, action: str) -> Step:
        """Takes a guess. Anything else is answered by the rule."""
        if not is_number(action):
            return Step(TITLE, 0.0, False)
        guess = int(without_special_tokens(action))
        if guess == self.number:
            return Step("right", 1.0, True)
        return Step("higher" if guess < self.number else "lower", 0.0, False)


def load_guess(*, chat: bool) -> Task:
    """Loads the task; every model reads plain text, because a small chat model talks instead of guessing."""
    splits: dict[str, dict[str, Row]] = {split: {} for split in SIZES}
    for index in count():
        rng = random.Random(f"guess/{index}")
        shown, number = _transcript(rng), rng.randint(LOWEST, HIGHEST)
        row = {"prompt": f"{shown}\n\n{TITLE}", "number": number}
        split = splits[split_of(shown)]  # games of a shown one are in one split
        if len(split) < SIZES[split_of(shown)]:
            split[str(row)] = row
        elif all(len(rows) >= SIZES[name] for name, rows in splits.items()):
            break
    return Task(
        name="agent:guess",
        splits={name: list(rows.values()) for name, rows in splits.items()},
        environment=Guess,
        max_turns=MAX_TURNS,
        max_new_tokens=2,
        is_well_formed=is_number,
        num_eval=512,
    )


def _transcript(rng: random.Random) -> str:
    """Returns one or two finished games, each guess within what the answers before it left."""
    games = []
    for _ in range(2):
        game, number, low, high = Guess(), rng.randint(LOWEST, HIGHEST), LOWEST, HIGHEST
        game.reset({"number": number})
        lines, guess = [TITLE], 0
        while guess != number:
            guess = rng.randint(low, high)
            lines += [f"> {guess}", game.step(str(guess)).observation]
            low, high = (guess + 1, high) if guess < number else (low, guess - 1)
        games.append("\n".join(lines))
    return "\n\n".join(games)
